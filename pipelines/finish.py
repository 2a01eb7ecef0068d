"""The end of a training or an evaluation: its report (--log_report), and the closing of the trackers."""

from __future__ import annotations

from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext
from utils.errors import UserError, user_message


def finish(run: RunContext[TrainingConfig], step: int, *, with_report: bool = True) -> None:
    """Write report.html into the run folder, if --log_report is set, and close the trackers, which keep it.

    with_report: False for a training that was stopped.
    """
    if with_report and run.settings.config.tracking.log_report and run.dist.is_main:
        _write_report(run, step)
    run.logger.finish()


def _write_report(run: RunContext[TrainingConfig], step: int) -> None:
    """A report that cannot be made, such as for want of a package, is a note: all else has ended well."""
    from evaluation.report.page import write_page  # not above: training needs no package that draws
    from evaluation.report.run_files import read_runs

    try:
        path, *_ = write_page(read_runs([run.folder]), run.folder / "report.html")
    except (UserError, OSError) as error:
        run.log(f"note: --log_report: no report ({user_message(error)})")
        return
    run.logger.store_file(path, "report", step)
    run.log(f"report: {path}")
