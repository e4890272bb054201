"""`dora grid` on one machine: a queue, slots and detached jobs where there is no Slurm.

`install()` (in `install.py`) puts it in Slurm's place. Below it, in the order of a job's life: `executor.py` makes the
job, `record.py` is what is known of it, `schedule.py` decides when it starts, `slots.py` where, `controller.py` runs
its tasks, `guard.py` sees that none outlives it, `job.py` is what Dora asks.

A job's processes import neither torch nor Dora before its tasks do: fifty jobs in the queue cost fifty small folders.
"""
