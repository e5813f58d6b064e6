"""NVIDIA's instructions as functions for a CPU: LLVM's intrinsics by name, inline assembly by what it says.

Both come out as LLVM IR that calls the runtime, or computes it at once where LLVM can.
"""

from __future__ import annotations

import re

from .text import arguments_of


class NotExecutedError(Exception):
    """There is no function for an instruction."""


FUNCTIONS = {
    "rt_load": "void (ptr, i64, i32, i32)",
    "rt_store": "void (i64, ptr, i32, i32)",
    "rt_load_shared": "void (i64, i32, i32)",
    "rt_store_shared": "void (i64, ptr, i32, i32)",
    "rt_copy": "void (i64, i64, i32, i32, i32)",
    "rt_commit": "void ()",
    "rt_wait": "void (i32)",
    "rt_shuffle": "i32 (i32, i32, i32)",
    "rt_reduce": "i32 (i32, i32)",
    "rt_product": "void (i32, ptr, ptr, ptr, ptr)",
    "rt_load_matrix": "void (ptr, i64, i32, i32)",
    "rt_store_matrix": "void (ptr, i64, i32, i32)",
    "rt_barrier": "void ()",
    "rt_warp_sync": "void ()",
    "rt_thread": "i32 ()",
    "rt_program": "i32 (i32)",
    "rt_programs": "i32 (i32)",
    "rt_permute": "i32 (i32, i32, i32)",
    "rt_tf32": "i32 (i32)",
}

# What LLVM calls for conversions that the CPU has no instructions for.
CONVERSIONS = {"__truncsfbf2": "rt_to_bfloat16", "__truncsfhf2": "rt_to_half", "__extendhfsf2": "rt_from_half"}

# The result, the parameters and the body of LLVM's intrinsics, without "llvm.nvvm.".
_EXP2 = ("float", "float %a", "%r = call float @llvm.exp2.f32(float %a) ret float %r")
_FMA = (
    "float",
    "float %a, float %b, float %c",
    "%r = call float @llvm.fma.f32(float %a, float %b, float %c) ret float %r",
)
_ROOT = ("float", "float %a", "%r = call float @llvm.sqrt.f32(float %a) ret float %r")
_ABSOLUTE = ("float", "float %a", "%r = call float @llvm.fabs.f32(float %a) ret float %r")
INTRINSICS = {
    "barrier.cta.sync.aligned.all": ("void", "i32 %a", "call void @rt_barrier() ret void"),
    "bar.warp.sync": ("void", "i32 %a", "call void @rt_warp_sync() ret void"),
    "cp.async.commit.group": ("void", "", "call void @rt_commit() ret void"),
    "cp.async.wait.group": ("void", "i32 %a", "call void @rt_wait(i32 %a) ret void"),
    "div.full": ("float", "float %a, float %b", "%r = fdiv float %a, %b ret float %r"),
    "ex2.approx.f32": _EXP2,
    "ex2.approx.ftz.f32": _EXP2,
    "fabs.f32": _ABSOLUTE,
    "fabs.ftz.f32": _ABSOLUTE,
    "fma.rn.f": _FMA,
    "fma.rn.ftz.f": _FMA,
    "prmt": (
        "i32",
        "i32 %a, i32 %b, i32 %c",
        "%r = call i32 @rt_permute(i32 %a, i32 %b, i32 %c) ret i32 %r",
    ),
    "sqrt.rn.f": _ROOT,
    "sqrt.rn.ftz.f": _ROOT,
    "read.ptx.sreg.tid.x": ("i32", "", "%r = call i32 @rt_thread() ret i32 %r"),
}
for _name, _is_xor in (("bfly", 1), ("idx", 0)):
    INTRINSICS[f"shfl.sync.{_name}.i32"] = (
        "i32",
        "i32 %mask, i32 %a, i32 %b, i32 %c",
        f"%r = call i32 @rt_shuffle(i32 %a, i32 %b, i32 {_is_xor}) ret i32 %r",
    )
for _kind, _name in enumerate(("add", "max", "min")):
    INTRINSICS[f"redux.sync.{_name}"] = (
        "i32",
        "i32 %a, i32 %mask",
        f"%r = call i32 @rt_reduce(i32 %a, i32 {_kind}) ret i32 %r",
    )
for _number, _axis in enumerate("xyz"):
    for _name, _function in (("ctaid", "rt_program"), ("nctaid", "rt_programs")):
        _body = f"%r = call i32 @{_function}(i32 {_number}) ret i32 %r"
        INTRINSICS[f"read.ptx.sreg.{_name}.{_axis}"] = ("i32", "", _body)
for _count in (1, 2, 4):
    for _transposed, _name in enumerate(("", "trans.")):
        _type = "{ " + ", ".join(["i32"] * _count) + " }" if _count > 1 else "i32"
        INTRINSICS[f"ldmatrix.sync.aligned.m8n8.x{_count}.{_name}b16.p3"] = (
            _type,
            "ptr %p",
            "%b = alloca [4 x i32] %q = ptrtoint ptr %p to i64 "
            f"call void @rt_load_matrix(ptr %b, i64 %q, i32 {_count}, i32 {_transposed}) "
            f"%r = load {_type}, ptr %b ret {_type} %r",
        )
        _stores = " ".join(
            f"%g{i} = getelementptr i32, ptr %b, i32 {i} store i32 %v{i}, ptr %g{i}" for i in range(_count)
        )
        INTRINSICS[f"stmatrix.sync.aligned.m8n8.x{_count}.{_name}b16.p3"] = (
            "void",
            ", ".join(["ptr %p", *(f"i32 %v{i}" for i in range(_count))]),
            f"%b = alloca [4 x i32] {_stores} %q = ptrtoint ptr %p to i64 "
            f"call void @rt_store_matrix(ptr %b, i64 %q, i32 {_count}, i32 {_transposed}) ret void",
        )


def intrinsic(name: str) -> str:
    """The definition of ``@nv.NAME``."""
    if name not in INTRINSICS:
        raise NotExecutedError(f"the intrinsic llvm.nvvm.{name}")
    result, parameters, body = INTRINSICS[name]
    return f"define {result} @nv.{name}({parameters}) {{ {body} }}"


class _Body:
    """The lines of a function whose parameters are an assembly's inputs, ``%a0`` onwards, of these types."""

    def __init__(self, result: str, types: tuple[str, ...]) -> None:
        self.result, self.types = result, types
        self.outputs = 0 if result == "void" else len(arguments_of(result[1:-1])) if result[0] == "{" else 1
        self.lines: list[str] = []

    def type_and_name(self, operand: int | str) -> tuple[str, str]:
        """Of ``$operand``, as the assembly counts, which counts outputs first."""
        i = int(operand) - self.outputs
        return self.types[i], f"%a{i}"

    def as_address(self, operand: str, offset: str = "0") -> str:
        _, name = self.type_and_name(operand)
        self.lines.append(f"%p{operand} = ptrtoint ptr {name} to i64 %q{operand} = add i64 %p{operand}, {offset}")
        return f"i64 %q{operand}"

    def as_predicate(self, operand: str | None) -> str:
        if operand is None:
            return "i32 1"
        self.lines.append(f"%is{operand} = zext i1 {self.type_and_name(operand)[1]} to i32")
        return f"i32 %is{operand}"

    def room(self, name: str, size: int) -> None:
        self.lines.append(f"%{name} = alloca [{size} x i8], align 16")

    def put(self, into: str, byte: int, type_: str, value: str) -> None:
        self.lines.append(f"%{into}{byte} = getelementptr i8, ptr %{into}, i32 {byte} ")
        self.lines.append(f"store {type_} {value}, ptr %{into}{byte}")

    def call(self, function: str, *arguments: str) -> None:
        self.lines.append(f"call void @{function}({', '.join(arguments)})")

    def give(self, room: str) -> None:
        self.lines.append(f"%result = load {self.result}, ptr %{room} ret {self.result} %result")


_LOAD = re.compile(r"(?:@\$(\d+) )?ld\.global\S*\.b(\d+) \{[^}]*\}, \[ \$(\d+) \+ (\d+) \]")
_STORE = re.compile(r"(?:@\$(\d+) )?st\.(global|shared)\S*\.b(\d+) \[ \$(\d+) \+ (\d+) \], \{?([^};]*)")
_COPY = re.compile(
    r"(?:@\$(\d+) )?cp\.async\.\w+\.shared\.global \[ \$(\d+) \+ 0 \], \[ \$(\d+) \+ 0 \], (\w+), \$(\d+);"
)
_PRODUCT = re.compile(r"mma\.sync\.aligned\.m16n8k(?:8|16)\.row\.col\.f32\.(tf32|bf16|f16)\.\1\.f32")


def assembly(name: str, result: str, template: str, types: tuple[str, ...]) -> str:
    """The definition of ``@name``, which does what an inline assembly does.

    Raises:
        NotExecutedError: it is none of those known here.
    """
    template = template.replace("\\0A\\09", " ").replace("\\0A", " ")
    body = _Body(result, types)
    if template in ("mov.b32 $0, $1;", "mov.b32 $0, 0;"):
        value = f"%r = bitcast {types[0]} %a0 to {result} ret {result} %r" if "$1" in template else f"ret {result} 0"
        body.lines.append(value)
    elif "createpolicy" in template:
        body.lines.append(f"ret {result} 0")
    elif template.startswith("cvt.rna.tf32"):
        body.lines.append("%i = bitcast float %a0 to i32 %j = call i32 @rt_tf32(i32 %i)")
        body.lines.append("%r = bitcast i32 %j to float ret float %r")
    elif found := _LOAD.search(template):
        _load(body, template, found)
    elif found := _STORE.search(template):
        _store(body, found)
    elif found := _COPY.search(template):
        predicate, to, start, size, filled = found.groups()
        addresses = body.as_address(to), body.as_address(start)
        filled_bytes = f"i32 {body.type_and_name(filled)[1]}"
        body.call("rt_copy", *addresses, f"i32 {int(size, 16)}", filled_bytes, body.as_predicate(predicate))
        body.lines.append("ret void")
    elif found := _PRODUCT.match(template):
        _product(body, ("tf32", "bf16", "f16").index(found[1]))
    else:
        raise NotExecutedError(f"the assembly {template!r}")
    parameters = ", ".join(f"{type_} %a{i}" for i, type_ in enumerate(types))
    return "\n".join([f"define {result} @{name}({parameters}) {{", *body.lines, "}"])


def _load(body: _Body, template: str, found: re.Match[str]) -> None:
    """A load: what it is not to read it has beforehand, by moves."""
    predicate, bits, address, offset = found.groups()
    width = int(bits) // 8
    body.room("values", width * body.outputs)
    for output, source in re.findall(r"mov\.\w+ \$(\d+), ([^;]+);", template):
        value = body.type_and_name(source[1:])[1] if source[0] == "$" else str(int(source, 16) % (1 << int(bits)))
        body.put("values", width * int(output), f"i{bits}", value)
    size = f"i32 {width * body.outputs}"
    body.call("rt_load", "ptr %values", body.as_address(address, offset), size, body.as_predicate(predicate))
    body.give("values")


def _store(body: _Body, found: re.Match[str]) -> None:
    predicate, space, bits, address, offset, values = found.groups()
    width, operands = int(bits) // 8, re.findall(r"\$(\d+)", values)
    body.room("values", 16)
    for i, operand in enumerate(operands):
        body.put("values", width * i, *body.type_and_name(operand))
    function = "rt_store" if space == "global" else "rt_store_shared"
    size = f"i32 {width * len(operands)}"
    body.call(function, body.as_address(address, offset), "ptr %values", size, body.as_predicate(predicate))
    body.lines.append("ret void")


def _product(body: _Body, kind: int) -> None:
    """A product of tensor cores, whose inputs are the four sums so far, four words of a and two of b."""
    for name, first, count in (("c", 0, 4), ("x", 4, 4), ("y", 8, 2)):
        body.room(name, 16)
        for i in range(count):
            body.put(name, 4 * i, body.types[first + i], f"%a{first + i}")
    body.room("d", 16)
    body.call("rt_product", f"i32 {kind}", "ptr %d", "ptr %c", "ptr %x", "ptr %y")
    body.give("d")
