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
  %all-reduce-start.2 = f32[8,128]{1,0} all-reduce-start(%p), channel_id=1, to_apply=%add.1
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
        "all-reduce": {"count": 2, "bytes": (4096 + 512) + 4096, "types": {"bfloat16": 512, "float32": 4096 + 4096}},
        "all-gather": {"count": 2, "bytes": 2048 + 2048, "types": {"bfloat16": 2048 + 2048}},
        "reduce-scatter": {"count": 1, "bytes": 4096, "types": {"float32": 4096}},
        # What %flags holds is not in this text.
        "collective-permute": {"count": 1, "bytes": 16 + 16 + 4 + 4, "types": {"bool": 16 + 16, "uint32": 4 + 4}},
    }
    assert hlo.collectives("ENTRY %main { ROOT %p = f32[8] parameter(0) }") == {}


# As XLA writes it for a GPU: the loop of `config.accumulate`, libraries, a fusion that reads a slice of its operand.
GPU = """
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/networks/batch_norm.py"
2 "/home/me/ops/conv.py"

FunctionNames
1 "BatchNorm.__call__"
2 "_pointwise"

FileLocations
1 {file_name_id=1 function_name_id=1 line=41 end_line=41 column=8 end_column=62}
2 {file_name_id=2 function_name_id=2 line=171 end_line=171 column=11 end_column=75}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}


%fused (parameter_0: f32[10,256], parameter_1: s32[], parameter_2: f32[256]) -> f32[256] {
  %parameter_0 = f32[10,256]{1,0} parameter(0)
  %parameter_1 = s32[] parameter(1)
  %dynamic-slice.1 = f32[1,256]{1,0} dynamic-slice(%parameter_0, %parameter_1), dynamic_slice_sizes={1,256}
  %parameter_2 = f32[256]{0} parameter(2)
  %bitcast.1 = f32[256]{0} bitcast(%dynamic-slice.1)
  ROOT %add.1 = f32[256]{0} add(%bitcast.1, %parameter_2), metadata={op_name="jit(f)/jvp()/add" stack_frame_id=2}
}

%body (arguments: (s32[], f32[10,256], f32[256])) -> (s32[], f32[10,256], f32[256]) {
  %arguments = (s32[], f32[10,256]{1,0}, f32[256]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arguments), index=0
  %xs = f32[10,256]{1,0} get-tuple-element(%arguments), index=1
  %sum = f32[256]{0} get-tuple-element(%arguments), index=2
  %fusion.1 = f32[256]{0} fusion(%xs, %i, %sum), kind=kLoop, calls=%fused
  ROOT %tuple.1 = (s32[], f32[10,256]{1,0}, f32[256]{0}) tuple(%i, %xs, %fusion.1)
}

ENTRY %main (x: f32[10,256], k: bf16[256]) -> f32[256] {
  %x = f32[10,256]{1,0} parameter(0)
  %k = bf16[256]{0} parameter(1)
  %start = (s32[], f32[10,256]{1,0}, f32[256]{0}) tuple(%x, %x, %x)
  %while.1 = (s32[], f32[10,256]{1,0}, f32[256]{0}) while(%start), condition=%condition, body=%body
  %sum.1 = f32[256]{0} get-tuple-element(%while.1), index=2
  %cudnn-conv.1 = (bf16[256]{0}, u8[0]{0}) custom-call(%sum.1, %k), custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(f)/transpose(jvp())/conv" stack_frame_id=1}
  %y = bf16[256]{0} get-tuple-element(%cudnn-conv.1), index=0
  %all-reduce-start.1 = bf16[256]{0} all-reduce-start(%y), channel_id=1, to_apply=%region
  ROOT %all-reduce-done.1 = bf16[256]{0} all-reduce-done(%all-reduce-start.1)
}
"""


def test_what_a_program_of_a_gpu_moves_and_starts():
    of_loop = 1024 + 4 + 1024 + 1024  # one row of ten, the index, the sum before and after
    of_cudnn, of_reduction = 1024 + 512 + 512, 512 + 512
    assert hlo.traffic(GPU, trips=3) == 3 * of_loop + of_cudnn + of_reduction
    assert hlo.launches(GPU, trips=3) == 3 + 1 + 1
    moved = {instruction.name: size for instruction, size in hlo.movers(GPU)}
    assert moved == {"fusion.1": of_loop, "cudnn-conv.1": of_cudnn, "all-reduce-start.1": of_reduction}
    assert hlo.collectives(GPU) == {"all-reduce": {"count": 1, "bytes": 512, "types": {"bfloat16": 512}}}


def test_traffic_by_line_of_python():
    assert hlo.by_source(GPU, trips=3) == {
        "conv.py:171 _pointwise": 3 * 3076,  # by what is in the fusion
        "batch_norm.py:41 BatchNorm.__call__, backward": 2048,
        "unknown": 1024,
    }
