// Discrete chains: filter, its adjoint, most likely path, posterior paths.
#pragma once

#include <cstdint>

#include "varax.h"

namespace varax {

// One chain. `transitions` is [states, states], or [steps - 1, states, states] if `varying`.
template <class T>
struct HmmChain {
  int64_t steps, states;
  bool varying;
  const T* initial;
  const T* transitions;
  const T* log_likelihoods;
};

// What the filter gives: evidence [1], filtered [steps, states] and, unless null, shift and scale [steps]:
// scale_t = sum_j predicted_tj exp(log_likelihood_tj - shift_t).
template <class T>
struct HmmFiltered {
  T *evidence, *filtered, *shift, *scale;
};

// What the adjoint of the filter reads (the filter's results; cotangents of the evidence [1] and, unless
// null, of the filtered probabilities) and what it writes.
template <class T>
struct HmmAdjoint {
  const T *filtered, *shift, *scale;
  const T *evidence_bar, *filtered_bar;
  T *initial_bar, *transitions_bar, *log_likelihoods_bar;
};

// What the adjoint of the smoother reads (the filter's results; cotangents of the evidence [1] and, unless
// null, of the smoothed probabilities and the expected transitions) and what it writes.
template <class T>
struct HmmSmootherAdjoint {
  const T *filtered, *shift, *scale;
  const T *evidence_bar, *smoothed_bar, *pairs_bar;
  T *initial_bar, *transitions_bar, *log_likelihoods_bar;
};

// A batch of chains: pointers to the first, and how far apart they are (0: shared).
template <class T>
struct HmmBatch {
  HmmChain<T> first;
  int64_t initial_stride, transitions_stride, log_likelihoods_stride;
};

constexpr int kHmmLanes = 16;      // chains that a thread takes at once
constexpr int kHmmFewest = 4;      // at least so many chains
constexpr int kHmmLaneStates = 8;  // at most so many states for that

}  // namespace varax

VARAX_DECLARE(void hmm_filter_f32(HmmChain<float>, HmmFiltered<float>);
              void hmm_filter_f64(HmmChain<double>, HmmFiltered<double>);
              void hmm_adjoint_f32(HmmChain<float>, HmmAdjoint<float>);
              void hmm_adjoint_f64(HmmChain<double>, HmmAdjoint<double>);
              void hmm_smoother_adjoint_f32(HmmChain<float>, HmmSmootherAdjoint<float>);
              void hmm_smoother_adjoint_f64(HmmChain<double>, HmmSmootherAdjoint<double>);
              void hmm_viterbi_f32(HmmChain<float>, int32_t*, float*);
              void hmm_viterbi_f64(HmmChain<double>, int32_t*, double*);
              void hmm_draw_f32(HmmChain<float>, const float*, const float*, int32_t*);
              void hmm_draw_f64(HmmChain<double>, const double*, const double*, int32_t*);
              void hmm_lanes_filter_f32(const HmmBatch<float>&, const HmmFiltered<float>&, int64_t, int64_t);
              void hmm_lanes_filter_f64(const HmmBatch<double>&, const HmmFiltered<double>&, int64_t, int64_t);
              void hmm_lanes_adjoint_f32(const HmmBatch<float>&, const HmmAdjoint<float>&, int64_t, int64_t);
              void hmm_lanes_adjoint_f64(const HmmBatch<double>&, const HmmAdjoint<double>&, int64_t, int64_t);
              void hmm_lanes_smoother_adjoint_f32(const HmmBatch<float>&, const HmmSmootherAdjoint<float>&, int64_t,
                                                  int64_t);
              void hmm_lanes_smoother_adjoint_f64(const HmmBatch<double>&, const HmmSmootherAdjoint<double>&, int64_t,
                                                  int64_t);)
