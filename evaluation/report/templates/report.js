"use strict";
(() => {
  const PAGE = 25; // rows shown at first, and added by each "Show more"

  // ---- sample browser: search, set, order

  for (const browser of document.querySelectorAll("[data-browser]")) {
    const find = (selector) => browser.querySelector(selector);
    const list = find(".rows"), count = find("[data-count]"), more = find("[data-more]");
    const rows = [...browser.querySelectorAll("[data-row]")];
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const search = find("[data-search]"), group = find("[data-set]"), sort = find("[data-sort]");
    const direction = find("[data-direction]");
    let falling = false, limit = PAGE;

    const value = (row) => parseFloat(row.dataset[sort.value] ?? "-1");
    const show = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = group ? group.value : "";
      const found = rows.filter(
        (row) => (!wanted || row.dataset.group === wanted) && words.every((word) => texts.get(row).includes(word)));
      const shown = new Set(found.slice(0, limit));
      for (const row of rows) row.hidden = !shown.has(row);
      const of = found.length === rows.length ? `${rows.length}` : `${found.length} found in ${rows.length}`;
      count.textContent = `${shown.size} of ${of} texts`;
      more.hidden = shown.size === found.length;
    };
    const order = () => {
      const sign = falling ? -1 : 1;
      rows.sort((a, b) => sign * (value(a) - value(b)) || a.dataset.group - b.dataset.group || a.dataset.number - b.dataset.number);
      list.append(...rows);
      direction.textContent = falling ? "↓" : "↑";
      limit = PAGE;
      show();
    };
    search.addEventListener("input", () => { limit = PAGE; show(); });
    if (group) group.addEventListener("change", () => { limit = PAGE; show(); });
    sort.addEventListener("change", () => { falling = sort.value !== "number"; order(); list.scrollTop = 0; });
    direction.addEventListener("click", () => { falling = !falling; order(); list.scrollTop = 0; });
    more.addEventListener("click", () => { limit += PAGE; show(); });
    find(".toolbar").hidden = false;
    order();
  }

  // ---- player of denoising

  for (const player of document.querySelectorAll("[data-player]")) {
    const steps = [...player.querySelectorAll("[data-step]")], slider = player.querySelector("input");
    const output = player.querySelector("output"), button = player.querySelector("[data-play]");
    let timer = 0;
    const show = () => {
      steps.forEach((step, i) => step.classList.toggle("now", i === Number(slider.value)));
      output.textContent = steps[slider.value].dataset.label;
      slider.setAttribute("aria-valuetext", output.textContent);
    };
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = "▶";
      button.setAttribute("aria-label", "Play");
    };
    const next = () => {
      if (Number(slider.value) >= steps.length - 1) return stop();
      slider.value = Number(slider.value) + 1;
      show();
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) >= steps.length - 1) slider.value = 0;
      show();
      timer = setInterval(next, 350);
      button.textContent = "❚❚";
      button.setAttribute("aria-label", "Pause");
    });
    slider.addEventListener("input", () => { stop(); show(); });
    player.classList.add("playing");
    player.querySelector(".controls").hidden = false;
    show();
    // The tallest step gives the height, so that the page does not move while it plays.
    const list = player.querySelector(".steps");
    const fit = () => {
      list.style.minHeight = "";
      let tallest = 0;
      for (const step of steps) {
        const now = step.classList.contains("now");
        step.classList.add("now");
        tallest = Math.max(tallest, step.offsetHeight);
        step.classList.toggle("now", now);
      }
      list.style.minHeight = `${tallest}px`;
    };
    fit();
    addEventListener("resize", fit);
  }

  // ---- charts: images until Bokeh has drawn them, in the colors of the scheme

  const data = document.getElementById("plots");
  if (!data || typeof Bokeh === "undefined") return;
  const plots = JSON.parse(data.textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colorOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = new Map(); // element of a chart -> the models of its plot
  const paint = (models) => {
    const ink = colorOf("--soft"), rule = colorOf("--line");
    const colors = {
      axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: rule, major_tick_line_color: rule,
    };
    for (const model of models) {
      for (const [name, color] of Object.entries(colors)) if (name in model.properties) model[name] = color;
      if (model.type === "Grid" && model.grid_line_color !== null) model.grid_line_color = rule;
    }
  };
  const draw = async (element) => {
    const image = element.querySelector("img"), target = document.createElement("div");
    element.style.minHeight = `${element.offsetHeight}px`; // the page does not move
    image.hidden = true; // before Bokeh measures
    element.append(target);
    try {
      const views = await Bokeh.embed.embed_item(plots[element.dataset.plot], target);
      drawn.set(element, views.roots.flatMap((view) => [...view.model.document._all_models.values()]));
      paint(drawn.get(element));
      element.dataset.drawn = "yes";
    } catch (error) {
      target.remove();
      image.hidden = false;
      console.error(error);
    }
    element.style.minHeight = "";
  };
  for (const button of document.querySelectorAll("[data-series]")) {
    button.addEventListener("click", () => {
      const figure = button.closest("figure"), shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      for (const model of drawn.get(figure.querySelector("[data-plot]")) ?? []) {
        if (model.type === "GlyphRenderer" && model.name === button.dataset.series) model.visible = shown;
      }
    });
  }
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watch.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "500px" });
  for (const element of document.querySelectorAll("[data-plot]")) watch.observe(element);
  dark.addEventListener("change", () => { for (const models of drawn.values()) paint(models); });
})();
