"""What submitit reads of jobs, from a listing as Slurm 22.05 writes it."""

from sacct_stand_in import rows

LISTING = """\
JobId=7 JobName=a UserId=me(1) JobState=COMPLETED Reason=None Comment=JobId NodeList=here BatchHost=here
JobId=8 JobName=b UserId=me(1) JobState=CANCELLED Reason=None NodeList= StdOut=/x y/8.out
JobId=11 ArrayJobId=10 ArrayTaskId=1 JobName=c JobState=RUNNING NodeList=here
JobId=10 ArrayJobId=10 ArrayTaskId=2-3 JobName=c JobState=PENDING NodeList=
No jobs in the system
"""


def test_states_and_array_tasks_read_as_from_sacct() -> None:
    assert list(rows(LISTING, [])) == [
        "JobID|State|NodeList",
        "7|COMPLETED|here",
        "8|CANCELLED by 0|",
        "10_1|RUNNING|here",
        "10_[2-3]|PENDING|",
    ]


def test_only_the_jobs_asked_for() -> None:
    assert list(rows(LISTING, ["8"]))[1:] == ["8|CANCELLED by 0|"]
    assert len(list(rows(LISTING, ["10"]))) == 3
    assert list(rows("", ["8"])) == ["JobID|State|NodeList"]
