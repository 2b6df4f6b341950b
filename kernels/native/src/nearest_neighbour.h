// Conditional weights of points given their neighbours: the loops behind nearest_neighbour.cc.
#pragma once

#include "varax.h"

namespace varax {

constexpr int64_t kMostNeighbours = 128;

template <class T>
struct Neighbourhoods {
  const T* x;                // [n, d], scaled by the length scales
  const int32_t* neighbour;  // [n, m]; below 0 or not below n: none
  T variance, noise, extra;
  int64_t n, m, d;
  int kind;
};

}  // namespace varax

VARAX_DECLARE(
    // Elements of `work` that the functions below need.
    int64_t neighbour_workspace(int64_t m, int64_t d);
    // Points [first, last): weights [n, m] and conditional variances [n].
    void neighbour_weights_f32(const Neighbourhoods<float>& p, int64_t first, int64_t last, float* weights,
                               float* variances, float* work);
    void neighbour_weights_f64(const Neighbourhoods<double>& p, int64_t first, int64_t last, double* weights,
                               double* variances, double* work);
    // Cotangents [n, m] and [n] -> dx[i - first, a, :] of the a-th neighbour, of the point itself for a = m;
    // sums[0:d] of the squared scaled differences (as covariance_matmul.h), then of variance, noise, extra.
    void neighbour_adjoint_f32(const Neighbourhoods<float>& p, int64_t first, int64_t last,
                               const float* weights_ct, const float* variances_ct, float* dx, double* sums,
                               float* work);
    void neighbour_adjoint_f64(const Neighbourhoods<double>& p, int64_t first, int64_t last,
                               const double* weights_ct, const double* variances_ct, double* dx, double* sums,
                               double* work);)
