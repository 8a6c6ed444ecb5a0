"""`python -m abckd_verify.gpu_check`: everything that only a GPU can tell, of every op and every loss.

It is made for a GPU that is lent for minutes. What matters most comes first, each part gets its share of `--budget`,
and each result is a line of JSON as soon as it is there. Items of a part run in a process of their own, one after
another; where that process dies or the GPU answers no more, a fresh one goes on behind the item that did it. At the
end stands one page: what failed, what was not reached, and what is slowest against the device's own copies.

    plan.py      parts in their order, with their items and the seconds that they should take
    parts.py     what an item does: raises, or returns what the report shall say
    worker.py    the process that runs items
    command.py   the process that starts workers, and the page
"""
