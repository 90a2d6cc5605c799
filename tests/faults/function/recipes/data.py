async def samples(): ...


def evaluation(count, *, seed=0): ...


if True:
    from math import dist as score
