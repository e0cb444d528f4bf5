"""Many independent tasks, in this process or over the workers of a Ray cluster.

`tasks` has what both share, `local` runs one task after the other, `ray_cluster` gives them to workers on `nodes`.
Ray starts, places and restarts processes, moves data and notices what dies; nothing here does that beside it.
"""
