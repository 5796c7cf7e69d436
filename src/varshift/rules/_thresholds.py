"""Every threshold of the rules, each with its reason. No rule holds a number of its own."""

from __future__ import annotations

from typing import Final

# Variance shift, folded to at least 1. A norm's output is scaled by the square root: 1.1 is 5 % of a standard
# deviation, above the 1.005 to 1.015 that moving averages of a noise-free net show and above what one layer
# forgives; 1.5 is what dropout .5 in the best place of a residual branch costs (5 points of accuracy).
SHIFT_WARNING: Final = 1.1
SHIFT_ERROR: Final = 1.5

# Offset of a mean in standard deviations. The same scale: a tenth moves 4 % of a normal signal across zero,
# half a standard deviation 19 %.
OFFSET_WARNING: Final = 0.1
OFFSET_ERROR: Final = 0.5

# A deviation counts when it exceeds its own standard error this many times. Three, because a network has many
# norms: among a hundred, two standard errors are exceeded five times by chance.
STANDARD_ERRORS: Final = 3.0

# Fewer batches say next to nothing about their own spread: with three, the error of a standard error is half
# of it. And statistics re-estimated from so few fit these very samples, on which the loss is then measured.
FEW_BATCHES: Final = 4

# The loss is one number per network, so two standard errors suffice; below a hundredth of the loss nobody
# would act on it. A net that has learnt its data by heart has a loss near zero, where a hundredth is nothing:
# for cross-entropy a step must also be worth a hundredth of a nat.
LOSS_STANDARD_ERRORS: Final = 2.0
LOSS_SHARE: Final = 0.01
LOSS_NATS: Final = 0.01
# Where no norm stands out, how far the moving average trails while the learning rate is still high costs a
# few per cent of the loss in healthy nets: advice. A tenth of the loss is worth a warning.
LOSS_SHARE_WARNING: Final = 0.1

# Shares of the loss that a cause costs, from which it is an error and a warning. Healthy networks show up to
# 4 % (a learning rate that is still high, augmentation, mixup, drop path); averaged weights with statistics
# that are not theirs lose 7 % and more. They count less this many standard errors, so that the severity is
# the same with another seed in all but one of ten checks.
COST_ERROR: Final = 0.1
COST_WARNING: Final = 0.05
COST_STANDARD_ERRORS: Final = 1.5

# Share of right answers from which a network was trained, whatever its norms say.
TRAINED_ACCURACY: Final = 0.5

# A step "statistics" that no norm shows, next to a variance shift of three times its size or more, is that of
# moving averages like any network's, made costly by the shifted signal. It goes with the shift.
ECHO_SHARE: Final = 1 / 3

# Statistics that weights were trained on in eval mode differ from those of training mode, most in depth: by
# 0.2 to 1 standard deviations at the worst norm. Training on other inputs than the loader's (mixup,
# augmentation in the loop) moves the first norm by a factor and hardly anything downstream, where the batch
# renormalises: 0.06. A mixture of two samples has half of their variance at the least; three times is another
# matter, also where a network has a single norm, of centred inputs, whose mean cannot move.
STORED_OFFSET: Final = 0.2
STORED_SHIFT: Final = 3.0

# Of data learnt by heart a rise counts from here on, where ratios show its cause too: drop path in sound
# networks costs a thousandth of a nat, dropout that held-out data suffer from three.
HEART_NATS: Final = 0.0025

# Share by which two losses differ that nobody would call the same, however small both are.
APART: Final = 0.2

# Without data a noise that reaches a norm through weights is worth more than advice from this drop rate on:
# q / k = 0.11, so the shift reaches SHIFT_WARNING even for inputs without a mean.
NOTABLE_DROP_RATE: Final = 0.1

# Ratio of means after a max-pool below which the bias is only worth advice: 2 % of the mean is within what
# the running mean of a norm or the bias of a layer varies by from one epoch to the next.
MAX_POOL_BIAS: Final = 1.02

# Two passes of the same batch in evaluation agree to the bit unless there is noise or a kernel that adds in a
# random order. When the captured network shows no noise, only a difference no kernel makes is reported.
REPEAT_DIFFERENCE: Final = 1e-6
REPEAT_DIFFERENCE_UNSEEN: Final = 1e-4

# Sampling that a network learned costs what its spread costs, some per cent of the loss of a variational
# autoencoder; a quarter is worth a look.
SAMPLER_COST: Final = 0.25

# Randomness in evaluation where there is no loss: a tenth of the output's size changes decisions, a
# hundredth is seen in a metric.
NOISE_OUTPUT_WARNING: Final = 0.01
NOISE_OUTPUT_ERROR: Final = 0.1

# Outputs that drift with what an evaluation writes: a thousandth is more than kernels that add in a random
# order make, and shows in the last digit of a metric; a tenth changes decisions.
DRIFT_WARNING: Final = 0.001
DRIFT_ERROR: Final = 0.1

# A sample's output with other batch mates, or alone, beyond what rounding explains (at least 1e-3, see the
# trials): a hundredth of the output's size is more than any fault of numerics, and visible in a prediction.
COMPANY_ERROR: Final = 0.01

# Outputs that move by a tenth between modes, noise and norms apart: decisions change.
FUNCTION_OUTPUTS: Final = 0.1

# Statistics that are those of the data at hand: a moving average over the last ten batches is within some per
# cent of the pooled variance.
FITTING_RATIO: Final = 1.05

# Signals that share a norm: variances a factor of 1.5 apart or means half a standard deviation off cost what
# a variance shift of that size costs (SHIFT_ERROR, OFFSET_ERROR); twice as far on a log scale is a warning by
# itself. Calls that differ less but always alike can give an answer away, which shows in the loss only; with
# batches of fewer samples than this the moments of a single call cost something by themselves.
DISTRIBUTIONS_RATIO: Final = 1.5
DISTRIBUTIONS_OFFSET: Final = 0.5
DISTRIBUTIONS_WARNING: Final = 2.0
SHARED_SAMPLES: Final = 16

# A sample's output with padding against its own length. What a convolution or two read beyond the end of a
# sample is some per cent on samples of eight steps; a mean over the padding a tenth and more.
PADDING_WARNING: Final = 0.05
PADDING_ERROR: Final = 0.25

# Steps at which ranks were compared before they are said to see different data: of eight the standard error
# is itself known to a quarter (one over the root of twice seven).
RANK_READINGS: Final = 8

# Torch's momentum is the weight of the new batch: 0.1 by default, 0.01 in ported nets. Nobody wants half.
MOMENTUM_LARGE: Final = 0.5

# The largest number of float16: a larger running variance is infinite once the model is cast.
HALF_PRECISION_LARGEST: Final = 65504.0

# Share of collapsed channels from which a norm as a whole has lost its signal.
COLLAPSED_SHARE: Final = 0.5

# Values per channel that one batch brings to a norm. The standard deviation of a batch is biased by -5 % at
# 16 and by -10 % at 8, and its relative noise is 37 % and 53 % in variance.
EFFECTIVE_BATCH_WARNING: Final = 16.0
EFFECTIVE_BATCH_ERROR: Final = 8.0
EFFECTIVE_BATCH_STANDARD_ERRORS: Final = 2.0

# How much lower the loss must be with the statistics of single batches than with pooled ones for the batches
# to be the reason though they hold enough values. Small healthy networks with batches of 16 to 128 show the
# opposite sign as a rule, and up to a tenth of a nat; the share keeps out networks far from trained.
BATCH_LOSS_SHARE: Final = 0.25
BATCH_LOSS_NATS: Final = 0.1

# Share by which the loss of batches learnt by heart rises when the same samples come in other batches:
# networks with other batches in every epoch do not rise at all.
REDRAWN_BY_HEART: Final = 0.5

# Share of batches that two epochs have in common from which their composition is fixed: a partition of more
# than a few dozen samples never comes twice by chance.
FIXED_COMPOSITION: Final = 0.9

# Variance of batch means over that of redrawn batches from which batch mates are alike. Random batches give 1
# within a factor of 1.5 for 16 batches.
BATCH_MATES_ALIKE: Final = 2.0

# A network that is better by this share of the loss on redrawn batches was not trained on the drawn ones.
REDRAWN_BETTER: Final = 0.3

# Mean of the factor of noise that is not rescaled, as a fold. Two per cent of a mean is what the running mean
# of a norm or the bias of a layer varies by from one epoch to the next. A tenth is what SHIFT_WARNING
# is for a variance.
MEAN_FACTOR: Final = 1.02
MEAN_FACTOR_WARNING: Final = 1.1

# Where no loss tells what a bias of the outputs costs: in units of what outputs differ by from sample to
# sample. Logits of healthy classifiers with dropout move by a fifth of it.
OUTPUT_BIAS_ADVICE: Final = 0.25
OUTPUT_BIAS_WARNING: Final = 0.5

# Share of the training loss that is the noise's: from half of it on, the loss in training says more about the
# noise than about the network.
NOISE_SHARE: Final = 0.5

# What one sample or batch multiplies the pooled variance of a norm by: from 4 on, every other sample is
# divided by twice its own deviation, and a rectifier downstream sees half of what it learned.
LEVERAGE_ERROR: Final = 4.0

# Cosine between two networks' weights from which one comes from the other. Networks from different starts
# have cosines below 0.1; clients of a round, moving averages and souped models have 0.8 and more.
RELATED_WEIGHTS: Final = 0.5

# An average has counted no more batches than the networks that it was made of, give or take clients with
# more data. One that has counted half as many again was trained on, and its statistics are its own.
OWN_TRAINING: Final = 1.5

# Relative distance of weights from which statistics of the others are surely off: a tenth of a layer's
# weights in another direction changes the variance of its outputs by about a hundredth, and every layer
# upstream adds to it.
FAR_WEIGHTS: Final = 0.1

# Distance of a norm's input from its running statistics: offsets of the means in standard deviations and half
# the log ratio of the variances, the root mean square over channels. Four batches of a healthy network are
# within .02 to .06, within .13 where columns are raw. From INPUTS_OFF on other inputs come into question.
INPUTS_OFF: Final = 0.25
# A map of the inputs explains it where the norms then agree nearly as in a healthy network: the first one,
# and all of them on average. Statistics of other images at another scale stay at .2 and more under any map.
INPUTS_FIT_FIRST: Final = 0.15
INPUTS_FIT_ALL: Final = 0.12
INPUTS_FIT_STANDARD: Final = 0.25  # where raw inputs become standardised ones, which is no coincidence
INPUTS_FIT_FACTOR: Final = 3.0  # by which the distance over all norms falls at least
INPUTS_LOSS_SHARE: Final = 0.75  # of the statistics step that the map takes away at least

# Difference of a channel between training and deployment: of the means in standard deviations, and of the
# deviations as a ratio. Samples of one data set agree within a tenth.
LOADERS_MEAN: Final = 0.25
LOADERS_DEVIATION: Final = 1.25
# At least this many standard errors of a mean over the samples that were compared.
LOADERS_ERRORS: Final = 4.0
# The same at a norm, where crops and sizes show: batches of one distribution are within .05.
LOADERS_NORM: Final = 0.2
# Share of the transform step that reversed channels take away at least: pictures are no better in the wrong
# order but by chance.
REVERSED_SHARE: Final = 0.5
# Share of the loss from which a cause that was seen at work, and not concluded from the loss, is a warning:
# half of COST_WARNING. A share below a fortieth is what one seed of the training differs from the next by.
CERTAIN_SHARE: Final = 0.025

# Standard error of the running mean, in standard deviations, below which no loss is put down to it: what one
# update a step leaves with a momentum of 0.1 and 64 independent values, which is no fault.
REMEMBERED_ERROR: Final = 0.03
