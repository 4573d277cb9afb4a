"""Which graphs are shown to keep rows apart, and why others are not. What is shown is also tried."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
from roost.runtimes.proof.dims import NotProven
from roost.runtimes.proof.graph import check_graph
from roost.runtimes.proof.prove import Verdict, prove
from roost.runtimes.protocol import LoadSpec

from tests.graphs import one, write_text
from tests.models import write_identity, write_loop, write_mlp, write_simple

ATTENTION = """(float[N,S,8] x) => (float[N,T,8] y)
<float[8,8] wq = {0.1 * 64}, float[8,8] wk = {0.2 * 64}, float[8,8] wv = {0.3 * 64},
 int64[4] heads = {0, -1, 2, 4}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] d = {8}>
{
  q = MatMul(x, wq)
  k = MatMul(x, wk)
  v = MatMul(x, wv)
  qh = Reshape(q, heads)
  kh = Reshape(k, heads)
  vh = Reshape(v, heads)
  qt = Transpose<perm = [0, 2, 1, 3]>(qh)
  kt = Transpose<perm = [0, 2, 3, 1]>(kh)
  vt = Transpose<perm = [0, 2, 1, 3]>(vh)
  scores = MatMul(qt, kt)
  shares = Softmax<axis = -1>(scores)
  mixed = MatMul(shares, vt)
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  size = Shape(x)
  n = Gather(size, zero)
  s = Gather(size, one)
  wanted = Concat<axis = 0>(n, s, d)
  y = Reshape(back, wanted)
}"""

MULTIHEAD = """(float[N,6,8] x) => (float[N,6,8] y) <int64[3] heads = {6, -1, 4}, int64[3] whole = {6, -1, 8}>
{
  t = Transpose<perm = [1, 0, 2]>(x)
  h = Reshape(t, heads)
  p = Transpose<perm = [1, 0, 2]>(h)
  k = Transpose<perm = [1, 2, 0]>(h)
  scores = MatMul(p, k)
  shares = Softmax<axis = 2>(scores)
  mixed = MatMul(shares, p)
  back = Transpose<perm = [1, 0, 2]>(mixed)
  whole_again = Reshape(back, whole)
  y = Transpose<perm = [1, 0, 2]>(whole_again)
}"""

CLASS_TOKEN = """(float[N,4,2] x) => (float[N,5,2] y)
<float[1,1,2] token = {1, 2}, int64 zero = {0}, int64[1] ones = {1}, int64[1] first = {0}, int64[1] both = {-1},
 int64[3] minus = {-1, -1, -1}, int64[3] all = {1, 1, 1}>
{
  size = Shape(x)
  n = Gather(size, zero)
  n1 = Unsqueeze(n, first)
  wanted = Concat<axis = 0>(n1, both, both)
  is_open = Equal(wanted, minus)
  chosen = Where(is_open, all, wanted)
  tokens = Expand(token, chosen)
  y = Concat<axis = 1>(tokens, x)
}"""

CONVOLUTION = """(float[N,1,8,8] x) => (float[N,3] y)
<float[2,1,3,3] k = {0.2 * 18}, float[2] scale = {1, 2}, float[2] shift = {0, 1}, float[2] mean = {0, 0},
 float[2] var = {1, 1}, float[18,3] w = {0.1 * 54}, int64[2] flat = {-1, 18}>
{
  c = Conv<kernel_shape = [3, 3]>(x, k)
  b = BatchNormalization(c, scale, shift, mean, var)
  r = Relu(b)
  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
  f = Reshape(p, flat)
  y = MatMul(f, w)
}"""

LSTM = """(float[N,5,3] x) => (float[N,4] y)
<float[1,16,3] w = {0.1 * 48}, float[1,16,4] r = {0.2 * 64}, int64[1] axis = {0}>
{
  t = Transpose<perm = [1, 0, 2]>(x)
  all, last, cell = LSTM<hidden_size = 4>(t, w, r)
  y = Squeeze(last, axis)
}"""

DYNAMIC = """(float[N,4] x) => (float[N,2] y) <int8[4,2] w = {9, 1, 3, 8, 2, 2, 7, 5}, float[1] ws = {0.1}>
{
  q, scale, zero = DynamicQuantizeLinear(x)
  m = MatMulInteger(q, w, zero)
  f = Cast<to = 1>(m)
  s = Mul(f, scale)
  y = Mul(s, ws)
}"""

EMBEDDING = """(int64[N,S] x) => (float[N,3] y)
<float[7,3] table = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21}, int64[1] axis = {1}>
{
  e = Gather(table, x)
  y = ReduceMean<keepdims = 0>(e, axis)
}"""

FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[N,4] x) => (float[N,4] y) { y = local.twice (x) }
<domain: "local", opset_import: ["" : 21]> twice (a) => (b) { b = Add(a, a) }"""

TREES = """(float[N,2] x) => (int64[N] label, float[N,2] y) {
  label, y = ai.onnx.ml.LinearClassifier<coefficients = [1.0, -1.0, -1.0, 1.0], intercepts = [0.0, 0.5],
    classlabels_ints = [0, 1]>(x)
}"""

PROVEN = {
    "softmax over the last axis": one("y = Softmax(x)"),
    "softmax over an axis from behind": one("y = Softmax<axis = -2>(x)", "float[N,3,4]", "float[N,3,4]"),
    "layer normalisation": one(
        "y = LayerNormalization(x, s, b)", weights="float[4] s = {1, 2, 3, 4}, float[4] b = {1, 1, 1, 1}"
    ),
    "attention": ATTENTION,
    "attention with the batch in the middle": MULTIHEAD,
    "a token in front of each row": CLASS_TOKEN,
    "convolutions": CONVOLUTION,
    "a recurrent layer": LSTM,
    "embeddings": EMBEDDING,
    "a linear classifier": TREES,
    "rows merged and taken apart": one(
        "a = Reshape(x, flat) b = Softmax<axis = 1>(a) y = Reshape(b, back)",
        "float[N,3,4]",
        "float[N,3,4]",
        "int64[2] flat = {-1, 4}, int64[3] back = {-1, 3, 4}",
    ),
    "flattened": one("a = Flatten<axis = 1>(x) y = Relu(a)", "float[N,2,3]", "float[N,M]"),
    "a slice of the columns": one(
        "y = Slice(x, s, e, a)",
        y="float[N,2]",
        weights="int64[2] s = {0, 1}, int64[2] e = {9223372036854775807, 3}, int64[2] a = {0, 1}",
    ),
    "split and put together": one("a, b = Split<axis = 1, num_outputs = 2>(x) y = Concat<axis = 1>(b, a)"),
    "padding around rows": one("y = Pad(x, p)", y="float[N,6]", weights="int64[4] p = {0, 1, 0, 1}"),
    "top elements of each row": one("y, i = TopK<axis = -1>(x, k)", y="float[N,2]", weights="int64[1] k = {2}"),
    "einsum": one(
        'y = Einsum<equation = "bi,ij->bj">(x, w)', y="float[N,2]", weights="float[4,2] w = {1,2,3,4,5,6,7,8}"
    ),
    "gemm": one(
        "y = Gemm<transB = 1>(x, w, b)",
        y="float[N,2]",
        weights="float[2,4] w = {1,2,3,4,5,6,7,8}, float[2] b = {1, 2}",
    ),
    "resized images": one("y = Resize(x, , s)", "float[N,1,4,4]", "float[N,1,8,8]", "float[4] s = {1, 1, 2, 2}"),
    "static quantisation": one(
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", weights="float s = {0.5}, int8 z = {1}"
    ),
    "a random constant that nobody uses": one("r = RandomNormal<shape = [3]>() y = Relu(x)"),
    "gelu of a contributed domain": one("y = com.microsoft.FastGelu(x)"),
    "dropout that is off": one("y = Dropout(x)"),
}

REFUSED = {
    "dynamic quantisation": (DYNAMIC, "operator DynamicQuantizeLinear mixes rows: it chooses one scale"),
    "softmax over the rows": (one("y = Softmax<axis = 0>(x)"), "operator Softmax mixes rows"),
    "softmax over the rows from behind": (one("y = Softmax<axis = -2>(x)"), "operator Softmax mixes rows"),
    "log softmax over the rows": (one("y = LogSoftmax<axis = 0>(x)"), "operator LogSoftmax mixes rows"),
    "reduction without axes": (one("a = ReduceSum(x) y = Add(x, a)"), "operator ReduceSum mixes rows"),
    "reduction over the rows": (
        one("a = ReduceMax(x, axis) y = Sub(x, a)", weights="int64[1] axis = {-2}"),
        "operator ReduceMax mixes rows",
    ),
    "axes that only the run knows": (
        "(float[N,4] x, int64[N,1] z) => (float[N,4] y) { y = ReduceSum(x, z) }",
        "operator ReduceSum is told what to do only when the model runs",
    ),
    "argmax by its default": (one("y = ArgMax(x)", y="int64[N,4]"), "operator ArgMax mixes rows"),
    "cumulative sum": (
        one("y = CumSum(x, axis)", weights="int64 axis = {0}"),
        "operator CumSum mixes rows: it works along the dimension that they are in",
    ),
    "top elements of all rows": (
        one("y, i = TopK<axis = 0>(x, k)", weights="int64[1] k = {1}"),
        "operator TopK mixes rows",
    ),
    "layer normalisation over everything": (
        one("y = LayerNormalization<axis = 0>(x, s)", weights="float[1,4] s = {1, 2, 3, 4}"),
        "operator LayerNormalization mixes rows",
    ),
    "batch normalisation in training": (
        one(
            "y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s)",
            weights="float[4] s = {1, 2, 3, 4}",
        ),
        "operator BatchNormalization mixes rows: it is in training mode",
    ),
    "mean and variance over all": (
        one("y = MeanVarianceNormalization(x)", "float[N,1,2,2]", "float[N,1,2,2]"),
        "operator MeanVarianceNormalization mixes rows",
    ),
    "non zero": (one("n = NonZero(x) y = Transpose(n)", y="int64[M,2]"), "operator NonZero mixes rows"),
    "unique": (one("y = Unique<axis = 0>(x)", y="float[M,4]"), "operator Unique mixes rows"),
    "compress": (
        one("y = Compress<axis = 0>(x, c)", weights="bool[1] c = {1}", y="float[M,4]"),
        "operator Compress mixes rows",
    ),
    "noise": (one("n = RandomNormalLike(x) y = Add(x, n)"), "operator RandomNormalLike draws random numbers"),
    "dropout in training": (
        one("y = Dropout(x, r, t)", weights="float r = {0.5}, bool t = {1}"),
        "operator Dropout draws random numbers",
    ),
    "the mean of the batch": (
        one("s = Shape(x) n = Gather(s, zero) f = Cast<to = 1>(n) y = Div(x, f)", weights="int64 zero = {0}"),
        "operator Cast computes with the number of rows",
    ),
    "each row with every other": (
        one("t = Transpose(x) m = MatMul(x, t) y = Softmax(m)", y="float[N,M]"),
        "operator MatMul mixes rows: it multiplies each with every other one",
    ),
    "a sum over rows by a product": (
        one("t = Transpose(x) m = MatMul(t, x) y = MatMul(x, m)"),
        "operator MatMul mixes rows: it sums over the dimension that they are in",
    ),
    "rows turned to columns": (one("y = Transpose(x)", y="float[M,N]"), "output 'y' does not have one element"),
    "rows that fall into others": (
        one("y = Reshape(x, s)", y="float[M,8]", weights="int64[2] s = {-1, 8}"),
        "operator Reshape may move the rows",
    ),
    "a batch of two, wired in": (
        one("y = Reshape(x, s)", y="float[M,4]", weights="int64[2] s = {2, 4}"),
        "operator Reshape needs a fixed number of rows",
    ),
    "all dimensions of size one": (one("y = Squeeze(x)", y="float[M]"), "operator Squeeze may move the rows"),
    "the first row": (
        one("f = Gather(x, zero) y = Add(x, f)", weights="int64 zero = {0}"),
        "operator Gather mixes rows: its indices may reach other rows",
    ),
    "all but the first row": (
        one("y = Slice(x, s, e)", weights="int64[1] s = {1}, int64[1] e = {1000000000}"),
        "operator Slice mixes rows",
    ),
    "rows side by side": (one("y = Concat<axis = 0>(x, x)"), "operator Concat mixes rows"),
    "rows shifted by padding": (one("y = Pad(x, p)", weights="int64[4] p = {1, 0, -1, 0}"), "operator Pad mixes rows"),
    "a weight for each place": (
        one("y = Add(x, w)", weights="float[2,1] w = {1, 2}"),
        "operator Add combines rows with something that has a fixed number",
    ),
    "numbered rows": (
        one(
            "s = Shape(x) n = Gather(s, zero) r = Range(zero, n, step) c = Cast<to = 1>(r) "
            "u = Unsqueeze(c, a) y = Add(x, u)",
            weights="int64 zero = {0}, int64 step = {1}, int64[1] a = {1}",
        ),
        "operator Range numbers the rows",
    ),
    "convolution along the batch": (
        one(
            "t = Transpose<perm = [1, 2, 0]>(x) c = Conv(t, k) y = Transpose<perm = [2, 0, 1]>(c)",
            "float[N,2,3]",
            "float[N,2,3]",
            "float[3,3,1] k = {1,2,3,4,5,6,7,8,9}",
        ),
        "operator Conv mixes rows: they are not in the dimension",
    ),
    "places that count all rows": (
        one("p, y = MaxPool<kernel_shape = [2]>(x)", "float[N,1,4]", "int64[N,1,3]"),
        "operator MaxPool gives indices that count all rows",
    ),
    "a sequence of rows": (
        "(float[N,2,3] x) => (float[N,1,2,4] y) <float[1,16,3] w = {0.1 * 48}, float[1,16,4] r = {0.1 * 64}> "
        "{ y, h, c = LSTM<hidden_size = 4>(x, w, r) }",
        "operator LSTM mixes rows",
    ),
    "einsum over the rows": (
        one('a = Einsum<equation = "bi->i">(x) y = Add(x, a)'),
        "operator Einsum mixes rows: it sums over",
    ),
    "a fixed output": (
        one("y = Identity(w)", y="float[N,4]", weights="float[1,4] w = {1, 2, 3, 4}"),
        "output 'y' is the same",
    ),
    "an operator that nobody knows": (one("y = local.Magic(x)"), "operator Magic is not known to keep rows apart"),
    "one of a contributed domain": (
        one("y = com.microsoft.Inverse(x)", "float[N,2,2]", "float[N,2,2]"),
        "operator Inverse is not known to keep rows apart",
    ),
    "a fixed first dimension": (one("y = Relu(x)", x="float[1,4]"), "input 'x' has a fixed first dimension"),
    "a scalar": ("(float[N,4] x, float z) => (float[N,4] y) { y = Mul(x, z) }", "input 'z' has no dimension for rows"),
    "the batch twice": (
        one("y = Relu(x)", x="float[N,N]", y="float[N,N]"),
        "input 'x' has the number of rows in another",
    ),
    "old broadcasting": (one("y = Relu(x)"), "it uses operators older than version 7"),
}


def opset_of(name: str) -> int:
    return 6 if name == "old broadcasting" else 21


class TestProven:
    @pytest.mark.parametrize("name", PROVEN)
    def test_keeps_rows_apart(self, tmp_path: Path, name: str) -> None:
        path = write_text(tmp_path / "model.onnx", PROVEN[name])
        assert prove(LoadSpec(str(path), str(tmp_path)), max_rows=8, budget_s=60) == Verdict(8)

    def test_whole_models(self, tmp_path: Path) -> None:
        paths = [
            write_mlp(tmp_path / "mlp.onnx", (16, 32, 4)),
            write_simple(tmp_path / "simple.onnx", -1),
            *(write_identity(tmp_path / f"{name}.onnx", name) for name in ("BYTES", "BOOL", "FP16", "BF16", "UINT8")),
        ]
        for path in paths:
            assert prove(LoadSpec(str(path), str(tmp_path)), max_rows=8, budget_s=60) == Verdict(8), path.name

    def test_a_function_of_the_model_is_looked_into(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(onnx.parser.parse_model(FUNCTION), str(path))
        check_graph(str(path))

    def test_before_version_13_softmax_takes_dimensions_together(self, tmp_path: Path) -> None:
        path = write_text(tmp_path / "model.onnx", one("y = Softmax(x)", "float[N,2,3]", "float[N,2,3]"), opset=12)
        check_graph(str(path))

    @pytest.mark.parametrize(("axes", "proven"), [("[1]", True), ("[0]", False)])
    def test_before_version_10_slices_have_their_bounds_as_attributes(
        self, tmp_path: Path, axes: str, proven: bool
    ) -> None:
        text = one(f"y = Slice<starts = [0], ends = [2], axes = {axes}>(x)", y="float[M,L]")
        path = write_text(tmp_path / "model.onnx", text, opset=9)
        if proven:
            check_graph(str(path))
        else:
            with pytest.raises(NotProven, match="operator Slice mixes rows"):
                check_graph(str(path))


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_for_the_right_reason(self, tmp_path: Path, name: str) -> None:
        text, reason = REFUSED[name]
        path = write_text(tmp_path / "model.onnx", text, opset_of(name))
        with pytest.raises(NotProven) as refused:
            check_graph(str(path))
        assert str(refused.value).startswith(reason)

    def test_a_graph_inside_the_graph(self, tmp_path: Path) -> None:
        text = one(
            "y = If(c) <then_branch = a () => (float[N,4] p) { p = Relu(x) }, "
            "else_branch = b () => (float[N,4] q) { q = Neg(x) }>",
            weights="bool c = {1}",
        )
        path = write_text(tmp_path / "model.onnx", text)
        with pytest.raises(NotProven, match="operator If runs another graph inside this one"):
            check_graph(str(path))
        with pytest.raises(NotProven, match="input 'n' has no dimension for rows"):
            check_graph(str(write_loop(tmp_path / "loop.onnx")))

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(NotProven, match="can't be read"):
            check_graph(str(tmp_path / "missing.onnx"))
