// The log-likelihood of a Matern process observed with noise, and its adjoint: what the handlers tell the loops.
#pragma once

#include "varax.h"

namespace varax {

constexpr int kMaternSegment = 64;  // steps from one kept moment to the next
inline int64_t matern_segments(int64_t steps) { return (steps + kMaternSegment - 1) / kMaternSegment; }

template <class T>
struct MaternProblem {
  int64_t order;  // 0, 1, 2: Matern-1/2, -3/2, -5/2, with order + 1 states
  int64_t steps, batch;
  const T *times, *y, *variance, *length_scale, *noise_sd;
  int64_t noise_step;  // 1: a noise_sd for every time; 0: one for all
  int64_t series[5];  // elements from one series to the next of each of these; 0: shared
  T* log_likelihood;  // [batch], for the value
  T* kept;            // [batch, segments, n + n (n + 1) / 2]: predicted moments of their first steps, or nullptr
  const T* d_log_likelihood;  // for the adjoint
  T *d_variance, *d_length_scale;  // [batch]
  T *d_times, *d_y, *d_noise_sd;   // [batch, ...], or nullptr: not wanted
};

}  // namespace varax

VARAX_DECLARE(
    void matern_value_f32(const MaternProblem<float>* problem, int64_t series);
    void matern_value_f64(const MaternProblem<double>* problem, int64_t series);
    void matern_adjoint_f32(const MaternProblem<float>* problem, int64_t series);
    void matern_adjoint_f64(const MaternProblem<double>* problem, int64_t series);)
