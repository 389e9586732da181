from __future__ import annotations

import pytest
from vae_edge_kernels.emulator.errors import PtxError
from vae_edge_kernels.emulator.parser import Param, parse, split_operands

HEAD = ".version 8.8\n.target sm_87\n.address_size 64\n"
KERNEL = (
    HEAD
    + """.extern .shared .align 16 .b8 global_smem[];
.visible .entry copy(
	.param .u64 .ptr .global .align 1 copy_param_0,
	.param .u32 copy_param_1
)
.reqntid 128
{
	.reg .pred %p<2>;
	.reg .b32 %r<3>;
	.reg .b64 %rd<2>;
	.loc 1 7 3
	ld.param.b64 %rd1, [copy_param_0];
$L__BB0_1:  // a loop
	@!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 8 ];
	{
	.reg .b32 %r1;
	mov.b32 %r1, 0f3F800000;
	}
	@%p1 bra $L__BB0_1;
	ret;
}
	.file 1 "/somewhere/copy.py"
"""
)


def test_a_kernel_is_read_whole() -> None:
    module = parse(KERNEL)
    entry = module.entry
    assert (module.target, module.shared, entry.threads) == ("sm_87", "global_smem", 128)
    assert entry.params == (Param("copy_param_0", "u64"), Param("copy_param_1", "u32"))
    assert entry.registers["%p1"] == 1
    assert entry.registers["%rd1"] == 64
    assert entry.labels == {"$L__BB0_1": 1}
    load = entry.instructions[1]
    assert (load.opcode, load.guard, load.negated) == ("ld.global.v2.b32", "%p1", True)
    assert load.operands == ("{ %r1, %r2 }", "[ %rd1 + 8 ]")
    assert (load.source, load.line) == ("copy.py:7", KERNEL.split("ld.global")[0].count("\n") + 1)


def test_a_register_of_an_inner_scope_is_another() -> None:
    inner = parse(KERNEL).entry.instructions[2].operands[0]
    assert inner != "%r1"
    assert inner.startswith("%r1@")


def test_a_label_of_an_inner_scope_is_another() -> None:
    loop = "	{\n	.reg .pred %done;\n	@%done bra over;\n	wait:\n	@!%done bra wait;\n	over:\n	}\n"
    entry = parse(KERNEL.replace("	ret;", f"{loop}{loop}	ret;")).entry
    jumps = [entry.labels[each.operands[0]] for each in entry.instructions if each.opcode == "bra"]
    assert jumps == [1, 6, 5, 8, 7]  # forward out of each scope, and back within it


def test_operands_are_split_outside_brackets() -> None:
    assert split_operands("{a, b}, [c+4], 1") == ("{a, b}", "[c+4]", "1")


@pytest.mark.parametrize(
    "statement, named",
    [(".local .b8 stack[8];", r"\.local"), (".reg .b128 %x<2>;", "b128"), ("?;", r"\?"), ("$L__BB0_1:", "twice")],
)
def test_what_is_not_known_is_refused(statement: str, named: str) -> None:
    with pytest.raises(PtxError, match=named):
        parse(KERNEL.replace("	ret;", f"	{statement}\n	ret;"))


def test_an_unfinished_text_is_refused() -> None:
    with pytest.raises(PtxError):
        parse(KERNEL.split("ret;")[0])
    with pytest.raises(PtxError):
        parse(HEAD + ".texref a;\n")


def test_inline_assembly_has_the_line_that_it_stands_at() -> None:
    body = """
        .loc 1 7 3
        // begin inline asm
        .loc 1 7 3
        mov.u32 %r1, 0x0;
        .loc 1 8 3
        mov.u32 %r2, 0x0;
        // end inline asm
        .loc 1 9 1
        ret;
    """
    head = ".version 8.7\n.target sm_87\n.visible .entry f()\n.reqntid 32\n{\n.reg .b32 %r<3>;\n"
    text = head + body + '}\n.file 1 "/a/b.py"'
    assert [instruction.source for instruction in parse(text).entry.instructions] == ["b.py:7", "b.py:7", "b.py:9"]
