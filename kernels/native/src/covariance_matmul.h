// Covariance matrix times vectors without the matrix: the loops behind covariance_matmul.cc.
#pragma once

#include "varax.h"

namespace varax {

// One problem: rows [first, last) of n. Points are scaled by their length scales and row-major.
template <class T>
struct CovarianceRows {
  const T* x;  // [n, d]
  const T* y;  // [m, d]
  const T* a;  // [n, k], gradient only
  const T* b;  // [m, k]
  T extra;     // alpha of the rational quadratic
  int64_t m, d, k;
  int kind;
};

}  // namespace varax

VARAX_DECLARE(
    // Elements of `work` that the two functions below need.
    int64_t covariance_workspace_f32(int64_t d, int64_t k);
    int64_t covariance_workspace_f64(int64_t d, int64_t k);
    // out[i, c] = sum_j k(x_i, y_j) b[j, c], out is [n, k].
    void covariance_matmul_f32(const CovarianceRows<float>& p, int64_t first, int64_t last, float* out,
                               double* work);
    void covariance_matmul_f64(const CovarianceRows<double>& p, int64_t first, int64_t last, double* out,
                               double* work);
    // Of s = sum_ij (a_i . b_j) k(x_i, y_j): dx[i, :] = ds/dx_i; sums[0:d] gets sum_i x_id-wise
    // sum_j (ds/dk_ij) 2 k'(u) (x_id - y_jd)^2, sums[d] gets s itself, sums[d + 1] gets ds/d(extra).
    void covariance_gradient_f32(const CovarianceRows<float>& p, int64_t first, int64_t last, float* dx,
                                 double* sums, double* work);
    void covariance_gradient_f64(const CovarianceRows<double>& p, int64_t first, int64_t last, double* dx,
                                 double* sums, double* work);)
