// Batches of small matrices, one in each lane of a vector: the loops behind small_cholesky.cc.
#pragma once

#include "varax.h"

namespace varax {

constexpr int64_t kSmall = 64;  // the largest n

// Matrices [first, last) of a batch; `*_step` is the distance from one to the next, 0 for a shared one.
template <class T>
struct SmallSolve {
  const T* l;  // [n, n], lower
  const T* b;  // [n, k]
  T* out;      // [n, k]
  int64_t l_step, b_step;
  int64_t n, k;
  bool forward, backward;  // by l, by its transpose, or both
};

}  // namespace varax

VARAX_DECLARE(
    // Elements of `work` that each function below needs.
    int64_t small_workspace(int64_t n);
    // l = cholesky((a + a') / 2), NaN where that is not positive definite.
    void small_cholesky_f32(const float* a, float* l, int64_t n, int64_t first, int64_t last, float* work);
    void small_cholesky_f64(const double* a, double* l, int64_t n, int64_t first, int64_t last, double* work);
    // The symmetric cotangent of a from l and the cotangent of l.
    void small_cholesky_adjoint_f32(const float* l, const float* ct, float* out, int64_t n, int64_t first,
                                    int64_t last, float* work);
    void small_cholesky_adjoint_f64(const double* l, const double* ct, double* out, int64_t n, int64_t first,
                                    int64_t last, double* work);
    void small_solve_f32(const SmallSolve<float>& p, int64_t first, int64_t last, float* work);
    void small_solve_f64(const SmallSolve<double>& p, int64_t first, int64_t last, double* work);)
