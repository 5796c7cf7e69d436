"""varshift's own names of operations, and what they mean: the one table of them."""

from __future__ import annotations

from typing import Literal

# Operations of torch that do the same with the same arguments under another name.
_ALIASES = {
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "logsigmoid": "log_sigmoid",
    "sgn": "sign",
    "_unsafe_view": "view",
    "_unsafe_index": "index",
    "_unsafe_index_put": "index_put",
    "_index_put_impl": "index_put",
    "_to_copy": "to",
}


def own_name(name: str) -> str:
    """The name that varshift has for an operation of torch, given without namespace and overload.

    Example:
        >>> own_name("multiply"), own_name("add_"), own_name("__and__"), own_name("conv2d")
        ('mul', 'add', '__and__', 'conv2d')
    """
    name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return _ALIASES.get(name, name)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators whose result depends on the shape of their tensor arguments only.
SHAPE_ONLY = _names("""
    empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros
    new_ones new_full new_empty_strided sym_size sym_numel sym_stride size numel
    _assert_tensor_metadata _assert_scalar _assert_async
""")
# Arguments that only lend their shape or type.
SHAPE_ARGUMENTS = frozenset(
    {
        ("expand_as", "other"),
        ("view_as", "other"),
        ("reshape_as", "other"),
        ("type_as", "other"),
        ("to", "other"),
        ("resize_as", "the_template"),
    }
)
# In-place operators that ignore what was there before.
OVERWRITES = _names("""
    copy fill zero uniform normal bernoulli exponential random geometric cauchy log_normal set
""")
# Random operators whose functional form only takes the shape of its first argument.
REFILLS = _names("uniform normal_functional exponential random geometric cauchy log_normal")
# Sources of random numbers: nothing of what they read decides what they return.
RANDOM = _names("""
    rand randn randint rand_like randn_like randint_like randperm bernoulli uniform normal
    normal_functional exponential random geometric cauchy log_normal multinomial poisson binomial
    _standard_gamma _sample_dirichlet
""")
DROPOUT = {
    "dropout": "dropout",
    "native_dropout": "dropout",
    "_fused_dropout": "dropout",
    "feature_dropout": "channel_dropout",
    "alpha_dropout": "alpha_dropout",
    "feature_alpha_dropout": "feature_alpha_dropout",
}
RECURRENT = _names("""
    lstm gru rnn_tanh rnn_relu quantized_lstm quantized_gru _cudnn_rnn miopen_rnn mkldnn_rnn_layer
    lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
""")
# Operators that mix units.
MIXING = RECURRENT | _names("""
    linear addmm mm bmm matmul baddbmm addbmm addmv mv dot vdot inner einsum tensordot bilinear
    chain_matmul conv1d conv2d conv3d convolution _convolution convolution_overrideable
    conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc conv_depthwise3d _conv_depthwise2d
    thnn_conv2d slow_conv3d mkldnn_convolution mkldnn_linear _slow_conv2d_forward cudnn_convolution
    cudnn_convolution_transpose miopen_convolution embedding embedding_bag _embedding_bag cdist
    _trilinear kron outer ger _int_mm _scaled_mm linalg_multi_dot linalg_vecdot fft_fft fft_ifft
    fft_fft2 fft_ifft2 fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn fft_fftn
    fft_ifftn _fft_r2c _fft_c2r _fft_c2c stft istft cumsum
""")
# They mix units too, but carry no weights of their own.
NORMALISING = _names("""
    layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm instance_norm
    batch_norm native_batch_norm softmax _softmax log_softmax _log_softmax _safe_softmax
    local_response_norm renorm linalg_vector_norm
""")
SUMS = _names("add sub subtract rsub addcmul addcdiv lerp")
PRODUCTS = _names("mul multiply div divide true_divide")
CONCATENATIONS = _names("cat concat concatenate stack hstack vstack dstack column_stack")
REDUCTIONS = _names("sum mean nansum nanmean")
STATISTICS = REDUCTIONS | _names("""
    var std var_mean std_mean batch_norm_stats linalg_vector_norm norm native_batch_norm
""")
MAX_POOLS = _names("""
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
    max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    fractional_max_pool2d fractional_max_pool3d mkldnn_max_pool2d mkldnn_max_pool3d
    quantized_max_pool2d amax max
""")
POOLS = (
    MAX_POOLS
    | REDUCTIONS
    | _names("""
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d lp_pool2d min amin
    logsumexp upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
    upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa
""")
)
VIEWS = _names("""
    view reshape flatten unflatten expand expand_as permute transpose t swapaxes movedim moveaxis
    squeeze unsqueeze select slice narrow unbind split split_with_sizes chunk tensor_split unfold
    contiguous clone alias detach lift_fresh lift_fresh_copy to _to_copy type_as float half bfloat16
    double roll flip repeat tile repeat_interleave broadcast_to broadcast_tensors constant_pad_nd
    pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d view_as _unsafe_view _reshape_alias as_strided copy slice_scatter
    select_scatter diagonal pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im rot90
    atleast_1d atleast_2d atleast_3d index index_select gather take take_along_dim numpy_T mT
    view_as_real view_as_complex real getitem resolve_conj resolve_neg data _unsafe_index index_copy
    index_put branch masked_select
""")
EXPANSIONS = _names("""
    expand expand_as broadcast_to repeat tile repeat_interleave broadcast_tensors
""")
# Elementwise functions of one signal and constants (views apart).
ACTIVATIONS = (
    SUMS
    | PRODUCTS
    | _names("""
    relu relu6 hardtanh hardswish hardsigmoid silu mish gelu elu selu celu leaky_relu prelu
    _prelu_kernel softplus softsign tanh sigmoid log_sigmoid logsigmoid log_sigmoid_forward
    hardshrink softshrink tanhshrink threshold rrelu rrelu_with_noise clamp clamp_min clamp_max clip
    exp expm1 log log1p log2 log10 sqrt rsqrt square pow abs neg negative sign sin cos erf erfc
    reciprocal floor ceil round trunc where masked_fill gt lt ge le eq ne logical_not logical_and
    logical_or bitwise_and bitwise_or bitwise_not minimum maximum floor_divide remainder fmod
    nan_to_num sub mul div add dropout alpha_dropout feature_dropout feature_alpha_dropout
    native_dropout __and__ __or__ __invert__ greater less greater_equal less_equal glu tan asin acos
    atan sinh cosh
""")
)
COMPARISONS = _names("""
    gt lt ge le eq ne greater less greater_equal less_equal
""")
INDEXING = _names("""
    index index_select gather take take_along_dim roll _unsafe_index embedding index_put index_copy
    index_fill scatter masked_select
""")
# Each reads one signal and weights.
WEIGHTED = _names("""
    linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d mm matmul addmm
""")
MATRICES = _names("mm matmul addmm")
# They normalise with running statistics, or store what they normalise with.
BATCH_NORMS = _names("""
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    cudnn_batch_norm
""")
LOGICAL = _names("""
    logical_not logical_and logical_or bitwise_and bitwise_or bitwise_not __and__ __or__ __invert__
""")
# Functions of one value alone, or of one value and constants.
ELEMENTWISE = ACTIVATIONS - SUMS - PRODUCTS - COMPARISONS - LOGICAL - {"glu"}
# f(a x) = a f(x) for a >= 0: such an activation hands a factor on unchanged.
HOMOGENEOUS = _names("relu leaky_relu prelu rrelu abs")
SCALES = PRODUCTS | _names("neg")
QUOTIENTS = _names("div")
TERMS = _names("add sub rsub")
AVERAGE_POOLS = _names("""
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d
""")
RESAMPLINGS = _names("""
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    upsample_nearest_exact2d
""")
# They put elements in places given by indices, and are linear in all that they move.
PLACING = _names("""
    index_add index_put index_copy index_fill put scatter scatter_add scatter_reduce masked_scatter
    slice_scatter select_scatter diagonal_scatter segment_reduce
""")
KEEPING = _names("clone contiguous alias detach to float double lift_fresh")

Property = Literal[
    "shape_only",
    "random",
    "dropout",
    "recurrent",
    "mixing",
    "weighted",
    "matrix",
    "normalising",
    "batch_norm",
    "sum",
    "product",
    "quotient",
    "concatenation",
    "reduction",
    "statistic",
    "max_pool",
    "average_pool",
    "resampling",
    "pool",
    "view",
    "keeping",
    "expansion",
    "indexing",
    "placing",
    "activation",
    "elementwise",
    "comparison",
    "logical",
    "homogeneous",
    "scale",
    "term",
]
_TABLE: dict[Property, frozenset[str]] = {
    "shape_only": SHAPE_ONLY,
    "random": RANDOM,
    "dropout": frozenset(DROPOUT),
    "recurrent": RECURRENT,
    "mixing": MIXING,
    "weighted": WEIGHTED,
    "matrix": MATRICES,
    "normalising": NORMALISING,
    "batch_norm": BATCH_NORMS,
    "sum": SUMS,
    "product": PRODUCTS,
    "quotient": QUOTIENTS,
    "concatenation": CONCATENATIONS,
    "reduction": REDUCTIONS,
    "statistic": STATISTICS,
    "max_pool": MAX_POOLS,
    "average_pool": AVERAGE_POOLS,
    "resampling": RESAMPLINGS,
    "pool": POOLS,
    "view": VIEWS,
    "keeping": KEEPING,
    "expansion": EXPANSIONS,
    "indexing": INDEXING,
    "placing": PLACING,
    "activation": ACTIVATIONS,
    "elementwise": ELEMENTWISE,
    "comparison": COMPARISONS,
    "logical": LOGICAL,
    "homogeneous": HOMOGENEOUS,
    "scale": SCALES,
    "term": TERMS,
}


def operations(*properties: Property) -> frozenset[str]:
    """The names of all operations that have one of some properties."""
    return frozenset().union(*(_TABLE[name] for name in properties))


def has_property(operation: str, *properties: Property) -> bool:
    """Whether an operation has one of some properties; one that is not in the table has none.

    Example:
        >>> has_property("conv2d", "mixing"), has_property("relu", "mixing", "homogeneous")
        (True, True)
    """
    return any(operation in _TABLE[name] for name in properties)


def lent_arguments(operation: str) -> frozenset[str]:
    """Names of the arguments that only lend an operation their shape or type."""
    return frozenset(argument for owner, argument in SHAPE_ARGUMENTS if owner == operation)
