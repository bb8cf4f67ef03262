"""Units in parts on a real GPU: routed experts and features of dictionaries; run as test_gpu_kernels is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Keep
from indexer_kernels.routes import Routes

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from indexer_kernels import topk_triton
from triton.runtime.interpreter import InterpretedFunction

import indexer
from indexer.index.verify import verify_index
from tests.test_routes_triton import assert_same, batches, empty, part_by_part
from tests.tiny_dictionaries import saved_dictionary
from tests.tiny_models import saved, word_files

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.skipif(
        isinstance(topk_triton.compete, InterpretedFunction), reason="kernels are interpreted: --noconftest"
    ),
]
GPU = torch.device("cuda")


def there(routes: Routes) -> Routes:
    return Routes(routes.parts, routes.part.to(GPU), routes.token.to(GPU), routes.row.to(GPU))


@pytest.mark.parametrize("by", ["sequence", "token", "document"])
@pytest.mark.parametrize(("parts", "width"), [(3, 7), (8, 64), (5, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_together_are_what_they_are_alone(parts: int, width: int, by: str, dtype: torch.dtype) -> None:
    keep = Keep(top=5, bottom=4, window=(6, 3), samples=2, by=by)
    ours, theirs = empty(parts, width, keep, "triton"), empty(parts, width, keep, "reference")
    for values, sequences, routes in batches(parts, width, 700, dtype):
        ours.update(values.to(GPU), sequences, routes=there(routes))
        part_by_part(theirs, values, sequences, routes)
    assert_same(ours, theirs)


@pytest.mark.parametrize("of", ["qwen3_moe", "gpt_oss", "features"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_build_on_the_gpu_is_that_of_the_cpu_but_for_rounding(of: str, dtype: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama" if of == "features" else of)
    asked: dict[str, Any] = {"sites": "experts"}
    if of == "features":
        asked = {"sites": "sae", "sae": (f"{saved_dictionary(tmp_path / 'sae')}=made",)}
    texts = word_files(tmp_path, (150, 70, 31, 4))
    units = []
    for device in ("cuda", "cpu"):
        output = indexer.build(
            model=str(model), corpus=texts, output=tmp_path / device, device=device, dtype=dtype,
            context=24, **asked,
        )  # fmt: skip
        verify_index(output, full=True)
        with indexer.open_index(output) as index:
            query = "SELECT count, coalesce(maximum, 0) AS maximum FROM units ORDER BY layer, unit"
            units.append(index.sql(query).to_pydict())
    loose = 2e-2 if dtype == "float32" else 0.2
    for name in units[0]:
        on_device, expected = (np.array(side[name], np.float64) for side in units)
        np.testing.assert_allclose(on_device, expected, rtol=loose, atol=loose * np.abs(expected).max())
