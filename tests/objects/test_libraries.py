"""Objects of pandas, pyarrow, torch and ml_dtypes, where they are installed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from object_helpers import mapped, there_and_back

import shmpool
from shmpool.objects import decode, layout

KIB = 1024


def lies_in(address: int, view: memoryview) -> bool:
    start = int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
    return start <= address < start + len(view)


# --- pandas -------------------------------------------------------------------------------------


def test_a_frame_comes_with_its_numbers_uncopied_and_its_texts() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "a": np.arange(5000.0),
            "b": np.arange(5000),
            "text": [f"row {at}" for at in range(5000)],
            "kind": pd.Categorical(["x", "y"] * 2500),
            "when": pd.date_range("2026-01-01", periods=5000, freq="s", tz="Europe/Berlin"),
        }
    )
    view = mapped(frame)
    got = decode(view)
    pd.testing.assert_frame_equal(got, frame)
    assert lies_in(got["a"].to_numpy().__array_interface__["data"][0], view)


# --- pyarrow --------------------------------------------------------------------------------------


def test_a_table_comes_uncopied() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"n": np.arange(50_000), "text": [str(at) for at in range(50_000)]})
    view = mapped(table)
    got = decode(view)
    assert got.equals(table)
    assert lies_in(got.column("n").chunk(0).buffers()[1].address, view)


def slices(pa: Any) -> dict[str, Any]:
    table = pa.table({"n": np.arange(50_000), "text": pa.array([str(at) for at in range(50_000)])})
    table = table.replace_schema_metadata({"who": "me"})
    return {
        "table": table.slice(17, 10),
        "batch": table.to_batches()[0].slice(17, 10),
        "column": table.column("text").slice(17, 10),
        "array": table.column("n").chunk(0).slice(17, 10),
        "texts": table.column("text").chunk(0).slice(17, 10),
        "no rows": table.slice(100, 0),
        "dictionary": pa.array(["a", "b"] * 20_000).dictionary_encode().slice(5, 10),
        "lists": pa.array([[1, 2]] * 20_000).slice(5, 10),
    }


def test_a_slice_sends_its_own_rows_only() -> None:
    pa = pytest.importorskip("pyarrow")
    for name, data in slices(pa).items():
        view = mapped(data)
        got = decode(view)
        assert type(got) is type(data), name
        assert got.equals(data), name
        assert len(view) < 4 * KIB, name
        if isinstance(data, pa.Table):
            assert got.schema.metadata == data.schema.metadata


# --- torch ----------------------------------------------------------------------------------------


def test_tensors_of_every_kind_come_uncopied() -> None:
    torch = pytest.importorskip("torch")
    kinds = [kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)]
    sent = 0
    for kind in kinds:
        try:
            tensor = torch.arange(4096).reshape(64, 64).to(kind)
        except (RuntimeError, TypeError, NotImplementedError, UserWarning):
            continue
        view = mapped(tensor)
        got = decode(view)
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert bytes(got.contiguous().reshape(-1).view(torch.uint8).numpy()) == bytes(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        )
        assert lies_in(got.data_ptr(), view), kind
        assert layout.flags_of(view) & layout.HAS_TENSORS
        sent += 1
    assert {torch.bfloat16, torch.float8_e4m3fn} <= set(kinds)
    assert sent > 10


def test_tensors_of_every_layout_come_back() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(10_000.0).reshape(100, 100)
    tensors = {
        "transposed": base.T,
        "crop": base[3:50, 7:90],
        "0-d": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
        "conjugated": torch.ones(500, dtype=torch.complex64).mul(1j).conj(),
        "expanded": torch.arange(3.0).expand(1000, 3),
        "sparse": torch.eye(50).to_sparse(),
        "with a gradient": torch.ones(500, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.ones(500)),
    }
    for name, tensor in tensors.items():
        got = there_and_back({"x": tensor})["x"]
        assert type(got) is type(tensor), name
        assert got.requires_grad == tensor.requires_grad, name
        assert torch.equal(got.to_dense() if got.is_sparse else got, tensor.to_dense() if tensor.is_sparse else tensor)


def test_a_model_s_state_comes_back() -> None:
    torch = pytest.importorskip("torch")
    state = torch.nn.Linear(100, 100).state_dict()
    got = there_and_back(state)
    assert all(torch.equal(got[key], state[key]) for key in state)


def test_torch_works_in_place_on_what_is_writable_and_reads_the_rest_without_a_warning(pool: shmpool.Pool) -> None:
    torch = pytest.importorskip("torch")
    shared = pool.share(np.arange(100_000, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(torch.from_dlpack(shared.get(copy=False)).max()) == 99_999
    mine = torch.from_numpy(shared.get(writable=True))
    mine.mul_(2)[:10].zero_()
    assert mine[:11].tolist() == [0.0] * 10 + [20.0]
    assert shared.get()[5] == 5
    tensor = pool.get(pool.put(torch.ones(100_000, dtype=torch.bfloat16)))
    tensor.add_(1)
    assert tensor.dtype is torch.bfloat16 and bool((tensor == 2).all())
    handle = pool.put(torch.ones(100_000))
    with pool.open(handle, writable=True) as buffer:
        torch.frombuffer(buffer.view, dtype=torch.uint8)[-4:].zero_()
    shared.release()


@pytest.mark.filterwarnings("default")
def test_torch_takes_what_is_got_writable_without_a_copy_and_without_a_warning(pool: shmpool.Pool) -> None:
    torch = pytest.importorskip("torch")
    torch.set_warn_always(True)  # once in a process would hide it
    try:
        with pool.share(np.arange(100_000.0)) as shared:
            for taken_by in (torch.asarray, torch.as_tensor, torch.from_numpy):
                for array in (pool.get(pool.put(np.arange(100_000.0)), writable=True), shared.get(writable=True)):
                    with warnings.catch_warnings(action="error"):
                        tensor = taken_by(array)
                    assert tensor.data_ptr() == array.ctypes.data and float(tensor[-1]) == 99_999
                    tensor.zero_()
                with pytest.warns(UserWarning, match="not writable"):
                    taken_by(shared.get())
            assert shared.get()[-1] == 99_999
            del tensor, array
    finally:
        torch.set_warn_always(False)


# --- ml_dtypes ------------------------------------------------------------------------------------


def test_arrays_of_ml_dtypes_come_back() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for array in (np.arange(2000).astype(ml_dtypes.bfloat16), np.ones((60, 60), ml_dtypes.float8_e5m2)[::2, 3:]):
        got = there_and_back([array])[0]
        assert got.dtype == array.dtype
        assert got.tobytes() == array.tobytes()


def test_none_of_these_libraries_is_needed_or_imported() -> None:
    script = (
        "import sys; from shmpool.objects import decode, encode\n"
        "sent = {'a': bytes(100_000), 'b': [1, 2.5, None]}\n"
        "assert decode(memoryview(b''.join(bytes(data) for _, data in encode(sent).parts))) == sent\n"
        "print(sorted({'numpy', 'pandas', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
