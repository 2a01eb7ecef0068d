"""One session on one GPU: checks and measurements in a few minutes, each phase a process with a limit of its own.

bash scripts/gpu_session.sh --output_dir runs/gpu_session

phases.py       the table of phases, in their order
session.py      starts them, keeps their results and the budget of time
run_phase.py    runs one phase in its process
report.py       what a phase writes: measurements, checks, notes
table.py        the table of a session
scales.py       sizes on a GPU, and small ones where there is none
<others>        a phase each: run(setting, report)
"""
