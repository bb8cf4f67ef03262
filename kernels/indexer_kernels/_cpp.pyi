from typing import Any

class Histogram:
    def __init__(self, low: Any, high: Any, recent: Any, recent_tokens: Any) -> None: ...

class Moments:
    def __init__(self, nan: Any, inf: Any, minimum: Any, maximum: Any, sums: Any, pending: Any) -> None: ...

class Places:
    def __init__(self, before: int, after: int, *arrays: Any) -> None: ...

class TopK:
    def __init__(
        self, places: Places, largest: bool, by: int, distinct: bool,
        threshold: Any, worst: Any, filled: Any, passage: Any,
    ) -> None: ...

class Bands:
    def __init__(self, places: Places, samples: int, key: Any, bars: Any, hash: Any) -> None: ...

class Batch:
    def __init__(
        self,
        start: Any,
        length: Any,
        document: Any,
        ordinal: Any,
        token_ids: Any,
        counted: Any,
        first_token: Any,
        tokens: Any,
        at: Any,
    ) -> None: ...

def process(
    function: int,
    gate: int,
    gate_stride: int,
    up: int,
    up_stride: int,
    out: int,
    out_stride: int,
    dtype: int,
    units: int,
    batch: Batch,
    histogram: Histogram | None,
    moments: Moments | None,
    top: TopK | None,
    bottom: TopK | None,
    samples: Bands | None,
    threads: int,
) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
