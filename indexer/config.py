"""What a build is asked to do: every option of the `build` command, checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# a path is as good as its text
Source = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
Count = Annotated[int, Field(ge=1)]


class BuildConfig(BaseModel):
    """Everything that decides what a build computes and where it puts it; stored whole in the manifest.

    Raises pydantic.ValidationError for unknown keys and for values out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Source
    corpus: tuple[Source, ...] = Field(min_length=1)
    output: Path
    layers: str | None = Field(
        None, min_length=1, description="layers to index, as 0-5,7; all of them where not given"
    )
    top: Count = 20
    bottom: Count = 20
    by: Literal["sequence", "token", "document"] = "sequence"
    context: Annotated[int, Field(ge=3)] = 256
    window: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (48, 15)
    max_tokens: Count | None = None
    batch_tokens: Count = 4096
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    kernels: Literal["auto", "cpp", "triton", "reference"] = "auto"
    text_column: str = "text"
    count_special_tokens: bool = False
    on_bad_text: Literal["error", "replace", "skip"] = "error"
    output_projection: str | None = None
    revision: str | None = None
    hooks: bool = Field(False, description="read activations by hooks even where the fused path is possible")
    # far more than any machine has; OpenMP runtimes end the process when asked for a million
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    overwrite: bool = False
