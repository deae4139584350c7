"""What is read from a program's text, on a small one whose figures can be counted by hand."""

from basisnet_jax.plan import hlo

HLO = """
HloModule jit_step, entry_computation_layout={(f32[8,128]{1,0:T(8,128)})->f32[8,128]{1,0}}

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q = bf16[2,128]{1,0:T(8,128)(2,1)S(1)} convert(%p), metadata={op_name="not an all-reduce(%p)"}
  %all-reduce.1 = (f32[8,128]{1,0:T(8,128)}, bf16[2,128]{1,0}) all-reduce(%p, %q), channel_id=1, to_apply=%add.1
  %all-reduce-start.2 = f32[8,128]{1,0} all-reduce-start(%p), channel_id=2, to_apply=%add.1
  %all-reduce-done.2 = f32[8,128]{1,0} all-reduce-done(%all-reduce-start.2)
  %all-gather.3 = bf16[8,128]{1,0} all-gather(%q), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
  %all-gather.4 = bf16[8,128]{1,0} all-gather(%q), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
  %all-gather-start.5 = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%q), channel_id=5, dimensions={0}
  %all-gather-done.5 = bf16[8,128]{1,0} all-gather-done(%all-gather-start.5)
  %permuted = (pred[16]{0}, pred[16]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%flags), channel_id=6
  ROOT %reduce-scatter.7 = f32[2,128]{1,0} reduce-scatter(%p), channel_id=7, dimensions={0}, to_apply=%add.1
}
"""


def test_collectives_of_a_program():
    assert hlo.collectives(HLO) == {
        "all-reduce": {"count": 2, "bytes": (4096 + 512) + 4096},
        "all-gather": {"count": 2, "bytes": 2048 + 2048},
        "reduce-scatter": {"count": 1, "bytes": 4096},
        "collective-permute": {"count": 1, "bytes": 16 + 16 + 4 + 4},  # what %flags holds is not in this text
    }
    assert hlo.collectives("ENTRY %main { ROOT %p = f32[8] parameter(0) }") == {}
