"""Names of units and ranges of layers."""

from __future__ import annotations

import pytest

from indexer.errors import IndexerError
from indexer.names import Unit, format_layers, parse_layers, parse_unit


@pytest.mark.parametrize(
    "name", ["mlp.5.1733", "mlp.0.0", "sae.gemma-2b.res-jb.11.16383", "residual.79.8191"]
)
def test_a_name_read_and_written_is_the_same(name: str) -> None:
    assert str(parse_unit(name)) == name


def test_a_site_may_hold_dots() -> None:
    assert parse_unit("sae.res.jb.2.7") == Unit("sae.res.jb", 2, 7)
    assert parse_unit("encoder.mlp.2.7") == Unit("encoder.mlp", 2, 7)


@pytest.mark.parametrize(
    "name",
    [
        "5/1733",
        "blocks.5.mlp.hook_post.1733",
        "model.layers.5.mlp.down_proj.1733",
        "transformer.h.5.mlp.c_proj.1733",
        "gpt_neox.layers.5.mlp.dense_4h_to_h.1733",
        "bert.encoder.layer.5.output.dense.1733",
        "model.decoder.layers.5.fc2.1733",
    ],
)
def test_a_neuron_as_others_write_it(name: str) -> None:
    assert parse_unit(name) == Unit("mlp", 5, 1733)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.5.attn.hook_z.1733",
        "transformer.h.5.attn.c_proj.1733",
        "bert.encoder.layer.5.attention.output.dense.1733",
        "5/1733/2",
        "blocks.5.mlp.hook_pre.1733",
    ],
)
def test_another_place_is_no_neuron(name: str) -> None:
    with pytest.raises(IndexerError, match=r"expected SITE\.LAYER\.UNIT"):
        parse_unit(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "expected SITE.LAYER.UNIT"),
        ("mlp", "expected SITE.LAYER.UNIT"),
        ("mlp.5", "expected SITE.LAYER.UNIT"),
        ("mlp.x.3", 'the layer "x" is not a whole number'),
        ("mlp.5.-1", 'the unit "-1" is not a whole number'),
        ("mlp.5.1e3", 'the unit "1e3" is not a whole number'),
        ("mlp.05.1", 'the layer "05" is not a whole number'),
        ("mlp.5.9999999999", "is not a whole number"),
        ("../mlp.5.1", 'site "../mlp"'),
        ("MLP.5.1", 'site "MLP"'),
        ("sae.../x.5.1", "site"),
    ],
)
def test_what_is_not_a_name_gets_one_line(name: str, said: str) -> None:
    with pytest.raises(IndexerError, match=r"(?s)^[^\n]+$") as error:
        parse_unit(name)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0", [0]),
        ("0-5,7", [0, 1, 2, 3, 4, 5, 7]),
        (" 3 , 1-2 ", [1, 2, 3]),
        ("1,1,0-1", [0, 1]),
        ("11", [11]),
    ],
)
def test_layers(text: str, layers: list[int]) -> None:
    assert list(parse_layers(text, range(12))) == layers
    assert list(parse_layers(format_layers(layers), range(12))) == layers


def test_layers_of_a_model_that_lacks_some() -> None:
    assert parse_layers("4", [0, 2, 4]) == (4,)
    assert parse_layers("1-4", [0, 2, 4]) == (2, 4)
    for text, number in (("3", 3), ("2-5", 5)):
        with pytest.raises(IndexerError, match=f"layer {number} is out of range; the model has layers 0,2,4"):
            parse_layers(text, [0, 2, 4])


def test_layers_are_written_as_ranges() -> None:
    assert format_layers([0, 1, 2, 3, 4, 5, 7]) == "0-5,7"
    assert format_layers([]) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'cannot read ""'),
        ("a", 'cannot read "a"'),
        ("1-2-3", 'cannot read "1-2-3"'),
        ("-1", 'cannot read "-1"'),
        ("5-2", "runs backwards; write 2-5"),
        ("12", "layer 12 is out of range; the model has layers 0-11"),
        ("0-999999999", "out of range"),
    ],
)
def test_layers_that_cannot_be_get_one_line(text: str, said: str) -> None:
    with pytest.raises(IndexerError) as error:
        parse_layers(text, range(12))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
