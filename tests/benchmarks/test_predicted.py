"""The time model by hand, and what is counted of launches by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.counted import predicted, work
from benchmarks.counted.predicted import PARAMETERS, Load, Predictions, behind_one_another, waves
from benchmarks.counted.work import Step, Steps, counted, steps
from benchmarks.files import RESULTS, load

MB = 10**6
STEP = Step("kernel", programs=264, warps=8, registers=64, shared=0, touched=[(0, 43 * MB, 43 * MB, False)])


def test_waves() -> None:
    # 64 registers: 4 programs of 8 warps fit, 528 on the chip.
    assert waves(STEP) == 1
    assert waves(Step("kernel", programs=529, warps=8, registers=64)) == 2  # one more has to wait
    assert waves(Step("kernel", programs=5280, warps=8, registers=64)) == 10
    assert waves(Step("library")) == 1


def test_the_slowest_part_decides() -> None:
    load = Load.of(STEP, 43 * MB)
    rate = {"dram": 1e12, "l2": 2e12, "products": 1e12, "operations": 1e12, "round": 1e-6, "meeting": 1e-7}
    rate |= {"start": 1e-6, "library": 1e12, "ramp": 0.5}
    assert load.seconds(rate) == pytest.approx(44e-6)
    few = Step("kernel", programs=66, warps=4, registers=32, rounds=50, meetings=10, products=15 * MB)
    assert Load.of(few, 0).waits(rate) == pytest.approx(54e-6)  # 50 rounds, 10 times 4 warps
    assert Load.of(few, 0).parts(rate)["products"] == pytest.approx(30e-6)  # on half the chip
    # Half of what a program waits is hidden by nothing; other programs' waits are beside the rest.
    assert Load.of(few, 0).seconds(rate) == pytest.approx(58e-6)
    many = replace(few, programs=66 * 96, products=0)
    assert waves(many) == 3
    assert Load.of(many, 0).seconds(rate) == pytest.approx(1e-6 + 27e-6 + 2 * 54e-6)
    assert Load.of(many, 0).longest(rate) == "waits"
    library = Step("mm", products=20 * MB, launches=2)
    assert Load.of(library, 0).seconds(rate) == pytest.approx(22e-6)


def test_what_is_in_the_cache_is_not_read_again() -> None:
    small, large = (0, 5 * MB, 5 * MB), (1, 40 * MB, 40 * MB)
    touched = [(*small, True), (*small, False), (*large, False), (*small, False), (*small, True)]
    loads = behind_one_another(Step("kernel", touched=[each]) for each in touched)
    # Written, found, read, not found any more, and written, found or not.
    assert [load.memory for load in loads] == [5 * MB, 0, 40 * MB, 5 * MB, 5 * MB]


def test_the_file_explains_what_was_measured() -> None:
    """As the page says, of blocks nothing was fitted on, too."""
    found, content = Predictions(load(RESULTS / predicted.FILE)), load(RESULTS / predicted.MEASURED)
    cases = predicted.measured(content)
    assert set(found.now) == set(found.then) == set(cases)
    off = [abs(predicted.error(found.seconds_then(n), c["seconds"]["ours"]["median"])) for n, c in cases.items()]
    assert sum(each <= math.log(1.3) for each in off) >= 32
    assert max(off) < math.log(1.5)
    copied = ((load.seconds(PARAMETERS) + PARAMETERS["event"], took) for _, load, took in predicted.copies(content))
    assert max(abs(predicted.error(*each)) for each in copied) < math.log(1.2)
    assert len(predicted.kernels(content, found.then)) == 128
    rows = list(predicted.table(found, content))
    assert [len(row) for row in rows] == [len(predicted.HEAD)] * len(cases)
    fitted = predicted.fit(content, found.then, predicted.FITTED)
    assert fitted == pytest.approx(predicted.FITTED, rel=0.05)


def test_the_file_is_written_as_it_is_read() -> None:
    text = (RESULTS / predicted.FILE).read_text()
    content = json.loads(text)
    assert predicted.as_json(content) == text
    name, rows = next(iter(content["now"].items()))
    assert json.loads(json.dumps([predicted._row(step) for step in Predictions(content).now[name]])) == rows


def test_steps_on_meta_tensors() -> None:
    found = steps("pixel", (2, 512, 8, 8))
    ours = [step for step in found if step.programs]
    library = [step for step in found if not step.programs]
    assert {step.name for step in ours} >= {"map_gate_fwd_kernel", "map_gate_bwd_kernel"}
    first = library[0]
    assert (first.name, first.launches) == ("_addmm_activation", 1)
    assert first.products % (2 * 64 * 512) == 0
    assert first.products > 0


def test_what_an_operator_writes_to_is_not_read() -> None:
    """An ``out=`` argument is written, and not read; what is changed in place is both."""
    a, b, into = (torch.empty(4, 4, device="meta") for _ in range(3))
    with Steps() as seen:
        torch.mm(a, b, out=into)
        into.add_(a)
    product, addition = ([(number, written) for number, *_, written in step.touched] for step in seen.found)
    of_a, of_b, of_into = (seen.number(each) for each in (a, b, into))
    assert sorted(product) == sorted([(of_a, False), (of_b, False), (of_into, True)])
    assert sorted(addition) == sorted([(of_into, False), (of_a, False), (of_into, True)])


@pytest.mark.interpreter
def test_programs_count_their_work() -> None:
    shape = (2, 64, 8, 8)
    size = 2 * math.prod(shape)
    found = {step.name: step for step in counted("se", shape)}
    squeeze, apply = found["squeeze_fwd_kernel"], found["apply_gate_fwd_kernel"]
    asked = [(length, asked, written) for _, length, asked, written in squeeze.touched]
    assert (size, size, False) in asked  # the map is read once
    assert min(squeeze.operations / (size // 2), squeeze.rounds, squeeze.meetings) >= 1
    assert not squeeze.products
    assert sorted(written for _, length, asked, written in apply.touched if length == size) == [False, True]
    assert found["dense_whole_fwd_kernel"].products > 0


@pytest.mark.interpreter
def test_the_longest_program_counts_where_all_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of one launch differ here: those of the weights' gradients sum up biases, the others nothing."""
    of_longest, of_mean = [], []
    for found, at_once in ((of_longest, work.AT_ONCE), (of_mean, 0)):
        monkeypatch.setattr(work, "AT_ONCE", at_once)
        found += [step.meetings for step in counted("cbam", (2, 64, 2, 2)) if step.name == "dense_bwd_kernel"]
    assert of_longest == [2.0]
    assert 0 < of_mean[0] < 2
