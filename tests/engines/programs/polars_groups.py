"""A query of polars without end."""

import numpy
import polars

frame = polars.DataFrame({"value": numpy.random.rand(3_000_000), "key": numpy.random.randint(0, 1000, 3_000_000)})
while True:
    frame.group_by("key").agg(polars.col("value").sum()).sort("key")
