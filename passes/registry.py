"""Every pass by name, imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import cast

from onnxfold.passes.base import Pass
from onnxfold.passes.errors import UsageError
from onnxfold.passes.spec import PassSpec, build_pass, parse_pipeline
from onnxfold.passes.suggest import did_you_mean

PASSES: dict[str, str] = {
    # simplify: float, exact
    "capture-invariants": "simplify.capture_invariants:CaptureInvariants",
    "deduplicate-initializers": "simplify.deduplicate_initializers:DeduplicateInitializers",
    "drop-unused-inputs": "simplify.drop_unused_inputs:DropUnusedInputs",
    "dynamic-batch": "simplify.dynamic_batch:DynamicBatch",
    "eliminate-common-subexpressions": (
        "simplify.eliminate_common_subexpressions:EliminateCommonSubexpressions"
    ),
    "fold-constants": "simplify.fold_constants:FoldConstants",
    "infer-shapes": "simplify.infer_shapes:InferShapes",
    "inline-functions": "simplify.inline_functions:InlineFunctions",
    "lift-constants": "simplify.lift_constants:LiftConstants",
    "merge-casts": "simplify.merge_casts:MergeCasts",
    "merge-reshapes": "simplify.merge_reshapes:MergeReshapes",
    "merge-transposes": "simplify.merge_transposes:MergeTransposes",
    "move-transposes": "simplify.move_transposes:MoveTransposes",
    "name-dimensions": "simplify.name_dimensions:NameDimensions",
    "readable-names": "simplify.readable_names:ReadableNames",
    "remove-dead-code": "simplify.remove_dead_code:RemoveDeadCode",
    "remove-identity": "simplify.remove_identity:RemoveIdentity",
    "resolve-shapes": "simplify.resolve_shapes:ResolveShapes",
    "upgrade-opset": "simplify.upgrade_opset:UpgradeOpset",
    # fuse: float, reassociated
    "absorb-transposes": "fuse.absorb_transposes:AbsorbTransposes",
    "einsum-to-matmul": "fuse.einsum_matmul:EinsumToMatMul",
    "fast-gelu": "fuse.fast_gelu:FastGelu",
    "fold-batch-norm": "fuse.batch_norm:FoldBatchNorm",
    "fold-constant-lookup": "fuse.constant_lookup:FoldConstantLookup",
    "fold-lookup-table": "fuse.fold_lookup_table:FoldLookupTable",
    "fold-pad": "fuse.pad:FoldPad",
    "fold-scale-bias": "fuse.scale_bias:FoldScaleBias",
    "fold-scaler": "fuse.fold_scaler:FoldScaler",
    "fuse-depth-to-space": "fuse.depth_to_space:FuseDepthToSpace",
    "fuse-hard-swish": "fuse.hard_swish:FuseHardSwish",
    "fuse-layer-norm": "fuse.layer_norm:FuseLayerNorm",
    "fuse-matmul-add": "fuse.matmul_add:FuseMatMulAdd",
    "fuse-one-hot-matmul": "fuse.one_hot_matmul:FuseOneHotMatMul",
    "fuse-softmax": "fuse.softmax:FuseSoftmax",
    "remove-redundant-expand": "fuse.redundant_expand:RemoveRedundantExpand",
    "masked-sum": "fuse.masked_sum:MaskedSum",
    "narrow-global-max-pool": "fuse.narrow_global_max_pool:NarrowGlobalMaxPool",
    "narrow-expand": "fuse.narrow_expand:NarrowExpand",
    "scale-factor": "fuse.scale_factor:ScaleFactor",
    "scale-quick-gelu": "fuse.scale_quick_gelu:ScaleQuickGelu",
    "sum-before-layer-norm": "fuse.sum_before_layer_norm:SumBeforeLayerNorm",
    # quantize
    "align-concat": "quantize.align_concat:AlignConcat",
    "convert-float16": "quantize.convert_float16:ConvertFloat16",
    "convert-float32": "quantize.convert_float32:ConvertFloat32",
    "correct-bias": "quantize.correct_bias:CorrectBias",
    "equalize": "quantize.equalize:Equalize",
    "gptq": "quantize.gptq:Gptq",
    "integer-io": "quantize.integer_io:IntegerIo",
    "insert-qdq": "quantize.insert_qdq:InsertQdq",
    "quantize-dynamic": "quantize.quantize_dynamic:QuantizeDynamic",
    "quick-gelu": "quantize.quick_gelu:QuickGelu",
    "quantize-weights": "quantize.quantize_weights:QuantizeWeights",
    "store-float16": "quantize.store_float16:StoreFloat16",
    "smooth-quant": "quantize.smooth_quant:SmoothQuant",
    "round-biases": "quantize.round_biases:RoundBiases",
    "round-weights": "quantize.round_weights:RoundWeights",
    "set-constants": "quantize.set_constants:SetConstants",
    # fold
    "carry-codes": "fold.carry_codes:CarryCodes",
    "centre-weights": "fold.centre_weights:CentreWeights",
    "fold-qdq": "fold.fold_qdq:FoldQdq",
    "promote-vectors": "fold.promote_vectors:PromoteVectors",
    "lower-conv-transpose": "fold.lower_conv_transpose:LowerConvTranspose",
    "gather-blocked": "fold.gather_blocked:GatherBlocked",
    "lift-qoperator": "fold.lift_qoperator:LiftQoperator",
    "move-wide-codes": "fold.move_wide_codes:MoveWideCodes",
    "quantize-lstm": "fold.quantize_lstm:QuantizeLstm",
    "reduce-range": "fold.reduce_range:ReduceRange",
    "relax-rounding": "fold.relax_rounding:RelaxRounding",
    "sign-operands": "fold.sign_operands:SignOperands",
    "split-readers": "fold.split_readers:SplitReaders",
    "transpose-heads": "fold.transpose_heads:TransposeHeads",
    # gradients: additive
    "add-cotangents": "grad.add_cotangents:AddCotangents",
    "add-gradient": "grad.add_gradient:AddGradient",
    "lower-gradient": "grad.lower_gradient:LowerGradient",
    # loss: what a model is judged and trained by
    "inject-loss": "loss.inject_loss:InjectLoss",
    "strip-loss": "loss.strip_loss:StripLoss",
    # training: optimizers in the graph
    "add-optimizer": "train.add_optimizer:AddOptimizer",
    "lower-optimizer": "train.lower_optimizer:LowerOptimizer",
    "strip-training": "train.strip_training:StripTraining",
    # bridge
    "surgeon": "surgeon:Surgeon",
}
"""Pass name -> ``module:Class`` below ``onnxfold.passes``."""


def pass_names() -> tuple[str, ...]:
    """The names of all passes, sorted."""
    return tuple(sorted(PASSES))


def pass_class(name: str) -> type[Pass]:
    """The class of the pass called ``name``.

    Raises:
        UsageError: There is no such pass; suggests the nearest name.
    """
    if name not in PASSES:
        hint = did_you_mean(name, PASSES) or "; onnxfold opt --list shows them"
        raise UsageError(f"no pass '{name}'{hint}")
    module, class_name = PASSES[name].split(":")
    return cast(
        "type[Pass]", getattr(importlib.import_module(f"onnxfold.passes.{module}"), class_name)
    )


def parse_passes(text: str) -> tuple[Pass, ...]:
    """The passes of a textual pipeline.

    Raises:
        UsageError: The text is malformed, or names an unknown pass or option.
    """
    return tuple(map(parse_pass, parse_pipeline(text)))


def parse_pass(spec: PassSpec) -> Pass:
    """The pass of one entry of a pipeline.

    Raises:
        UsageError: The pass or an option is unknown.
    """
    return build_pass(pass_class(spec.name), spec)
