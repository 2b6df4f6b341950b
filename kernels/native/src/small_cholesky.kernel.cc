// Batched Cholesky factors and triangular solves of small matrices: each lane of a vector is a matrix.
#include "small_cholesky.h"

#include "small_lanes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// Lower triangles of `lanes` matrices, or the mean of both triangles; a lane without a matrix gets the first.
template <bool mean, class T>
void take(const T* from, int64_t step, int64_t lanes, int64_t n, T* to) {
  constexpr int W = Vec<T>::width;
  for (int l = 0; l < W; ++l) {
    const T* a = from + (l < lanes ? l : 0) * step;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j)
        to[packed(i, j) * W + l] = mean ? (a[i * n + j] + a[j * n + i]) * T(0.5) : a[i * n + j];
  }
}

template <class T>
void cholesky(const T* a, T* l, int64_t n, int64_t first, int64_t last, T* work) {
  constexpr int W = Vec<T>::width;
  for (int64_t at = first; at < last; at += W) {
    const int64_t lanes = at + W < last ? W : last - at;
    take<true>(a + at * n * n, n * n, lanes, n, work);
    factor(work, n);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      T* to = l + (at + lane) * n * n;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) to[i * n + j] = work[packed(i, j) * W + lane];
        for (int64_t j = i + 1; j < n; ++j) to[i * n + j] = 0;
      }
    }
  }
}

// The factorisation backwards, row by row (Murray 2016, arXiv:1602.07527, section 4, by rows). Row k of l is
// l_kj = (a_kj - sum_{q<j} l_kq l_jq) / l_jj and l_kk^2 = a_kk - sum_q l_kq^2. Cotangents in place.
template <class T>
void factor_backward(const T* l, T* ct, int64_t n) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  for (int64_t k = n; k-- > 0;) {
    const T* row = l + packed(k, 0) * W;
    T* row_ct = ct + packed(k, 0) * W;
    V pivot_ct = load(row_ct + k * W) / (load(row + k * W) * T(2));
    store(row_ct + k * W, pivot_ct);
    for (int64_t q = 0; q < k; ++q)
      store(row_ct + q * W, load(row_ct + q * W) - load(row + q * W) * pivot_ct * T(2));
    for (int64_t j = k; j-- > 0;) {
      const T* other = l + packed(j, 0) * W;
      T* other_ct = ct + packed(j, 0) * W;
      V entry_ct = load(row_ct + j * W) / load(other + j * W);
      store(row_ct + j * W, entry_ct);
      store(other_ct + j * W, load(other_ct + j * W) - entry_ct * load(row + j * W));
      for (int64_t q = 0; q < j; ++q) {
        store(row_ct + q * W, load(row_ct + q * W) - entry_ct * load(other + q * W));
        store(other_ct + q * W, load(other_ct + q * W) - entry_ct * load(row + q * W));
      }
    }
  }
}

template <class T>
void cholesky_adjoint(const T* l, const T* ct, T* out, int64_t n, int64_t first, int64_t last, T* work) {
  constexpr int W = Vec<T>::width;
  T* moving = work + packed(n, 0) * W;
  for (int64_t at = first; at < last; at += W) {
    const int64_t lanes = at + W < last ? W : last - at;
    take<false>(l + at * n * n, n * n, lanes, n, work);
    take<false>(ct + at * n * n, n * n, lanes, n, moving);
    factor_backward(work, moving, n);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      T* to = out + (at + lane) * n * n;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < i; ++j)
          to[i * n + j] = to[j * n + i] = moving[packed(i, j) * W + lane] * T(0.5);
        to[i * n + i] = moving[packed(i, i) * W + lane];
      }
    }
  }
}

template <class T>
void solve(const SmallSolve<T>& p, int64_t first, int64_t last, T* work) {
  constexpr int W = Vec<T>::width;
  const int64_t n = p.n, k = p.k;
  T* x = work + packed(n, 0) * W;
  for (int64_t at = first; at < last; at += W) {
    const int64_t lanes = at + W < last ? W : last - at;
    take<false>(p.l + at * p.l_step, p.l_step, lanes, n, work);
    for (int64_t c = 0; c < k; ++c) {
      for (int l = 0; l < W; ++l) {
        const T* b = p.b + (at + (l < lanes ? l : 0)) * p.b_step + c;
        for (int64_t i = 0; i < n; ++i) x[i * W + l] = b[i * k];
      }
      if (p.forward) solve_forward(work, x, n);
      if (p.backward) solve_backward(work, x, n);
      for (int64_t l = 0; l < lanes; ++l)
        for (int64_t i = 0; i < n; ++i) p.out[((at + l) * n + i) * k + c] = x[i * W + l];
    }
  }
}

}  // namespace

int64_t small_workspace(int64_t n) { return 2 * packed(n, 0) * (kVectorBytes / 4) + n * (kVectorBytes / 4); }

#define VARAX_SMALL(T, suffix)                                                                            \
  void small_cholesky_##suffix(const T* a, T* l, int64_t n, int64_t first, int64_t last, T* work) {       \
    cholesky(a, l, n, first, last, work);                                                                 \
  }                                                                                                       \
  void small_cholesky_adjoint_##suffix(const T* l, const T* ct, T* out, int64_t n, int64_t first,         \
                                       int64_t last, T* work) {                                           \
    cholesky_adjoint(l, ct, out, n, first, last, work);                                                   \
  }                                                                                                       \
  void small_solve_##suffix(const SmallSolve<T>& p, int64_t first, int64_t last, T* work) {               \
    solve(p, first, last, work);                                                                          \
  }
VARAX_SMALL(float, f32)
VARAX_SMALL(double, f64)

}  // namespace VARAX_ISA
}  // namespace varax
