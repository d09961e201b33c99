"""Several values of a key, told from one value with commas in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.config.sweep_values import split_values, sweep_values
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("optimizer.lr=1e-4,2e-4", ["1e-4", "2e-4"]),
        ("optimizer.lr=1e-4, 2e-4", ["1e-4", "2e-4"]),
        ("optimizer.lr=1e-4", ["1e-4"]),
        ("data.flip=true,false", ["true", "false"]),
        ("train.minutes=null,30", ["null", "30"]),
        ("train.precision=fp32,bf16", ["fp32", "bf16"]),
        ("stage.sampler.kind=ddim,heun", ["ddim", "heun"]),
        ("stage.kind=vae,flow", ["vae", "flow"]),
        ("stage.network.kind=unet,dit", ["unet", "dit"]),
        ("data.resolution=48,64", ["48", "64"]),
        ("data.resolution=[48,64]", ["[48,64]"]),
        ("data.resolution=[48,64],64", ["[48,64]", "64"]),
        ("optimizer.betas=[0.9,0.95],[0.9,0.99]", ["[0.9,0.95]", "[0.9,0.99]"]),
        ("optimizer.betas=0.9,0.95", ["0.9,0.95"]),
        ("optimizer.lr_factors={a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("optimizer.lr_factors={a: 1, b: 2},{}", ["{a: 1, b: 2}", "{}"]),
        ("stage.network.channel_mult=[1,2],[1,2,2]", ["[1,2]", "[1,2,2]"]),
        ("eval.metrics=fid,kid", ["fid,kid"]),
        ("eval.metrics=[fid,kid]", ["[fid,kid]"]),
        ("run.dir=runs/a,b", ["runs/a,b"]),
        ("data.train=shards/{a,b}.tar,shards/c", ["shards/{a,b}.tar,shards/c"]),
        ("data.train=[a,b],[c]", ["[a,b],[c]"]),
        ("stage.codec.run=runs/a,runs/b", ["runs/a,runs/b"]),
        ("no.such.key=1,2", ["1,2"]),
        ("run.dir=a,", ["a,"]),
    ],
)
def test_commas_separate_values_where_no_value_has_one(word: str, values: list[str]) -> None:
    assert sweep_values(Experiment, word) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("shards/{a,b}.tar,shards/c", ["shards/{a,b}.tar", "shards/c"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("""'a,b',"c,d",e""", ["'a,b'", '"c,d"', "e"]),
        ("""['a],b'],c""", ["['a],b']", "c"]),
        ("it's,5'", ["it's", "5'"]),
        ("a],b", ["a]", "b"]),
        ("[a,b", ["[a,b"]),
        ("", [""]),
    ],
)
def test_brackets_and_quotes_hold_commas(text: str, values: list[str]) -> None:
    assert split_values(f"data.train={text}") == values


@given(st.lists(st.integers() | st.floats(allow_nan=False) | st.booleans(), min_size=1))
def test_values_that_are_joined_are_split_again(values: list[object]) -> None:
    words = [str(value) for value in values]
    assert split_values("optimizer.lr=" + ",".join(words)) == words


@pytest.mark.parametrize("text", ["1,", ",1", "1,,2", "1, ,2"])
def test_an_empty_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"^optimizer\.lr={text}: a value is missing before or after a comma"):
        sweep_values(Experiment, f"optimizer.lr={text}")
