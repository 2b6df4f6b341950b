// Lower triangles of a vector's worth of matrices, row by row, each lane a matrix: for kernel files.
#pragma once

#include "gp_vector.h"

namespace varax {
namespace VARAX_ISA {

static inline int64_t packed(int64_t i, int64_t j) { return i * (i + 1) / 2 + j; }  // i >= j

// sum_{q < count} x_q y_q for rows x and y.
template <class T>
static inline typename Vec<T>::type rows_product(const T* x, const T* y, int64_t count) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  V even{}, odd{};
  int64_t q = 0;
  for (; q + 2 <= count; q += 2) {
    even += load(x + q * W) * load(y + q * W);
    odd += load(x + (q + 1) * W) * load(y + (q + 1) * W);
  }
  if (q < count) even += load(x + q * W) * load(y + q * W);
  return even + odd;
}

// Factor in place; lanes whose matrix is not positive definite become NaN as a whole.
template <class T>
static inline void factor(T* a, int64_t n) {
  typedef typename Vec<T>::type V;
  typedef typename Vec<T>::bits I;
  constexpr int W = Vec<T>::width;
  V nothing{};
  I good = nothing == nothing;
  for (int64_t i = 0; i < n; ++i) {
    T* row = a + packed(i, 0) * W;
    for (int64_t j = 0; j < i; ++j) {
      const T* other = a + packed(j, 0) * W;
      // The diagonal of a finished row holds its reciprocal until the end.
      store(row + j * W, (load(row + j * W) - rows_product(row, other, j)) * load(other + j * W));
    }
    V pivot = load(row + i * W) - rows_product(row, row, i);
    good &= pivot > V{};
    store(row + i * W, T(1) / square_root(pivot));
  }
  const V nan = splat<T>(static_cast<T>(__builtin_nan("")));
  for (int64_t i = 0; i < n; ++i) {
    T* diagonal = a + packed(i, i) * W;
    store(diagonal, T(1) / load(diagonal));
  }
  for (int l = 0; l < W; ++l)
    if (!good[l]) {
      for (int64_t p = 0; p < packed(n, 0); ++p) store(a + p * W, good ? load(a + p * W) : nan);
      break;
    }
}

// x = l^-1 x.
template <class T>
static inline void solve_forward(const T* l, T* x, int64_t n) {
  constexpr int W = Vec<T>::width;
  for (int64_t i = 0; i < n; ++i) {
    const T* row = l + packed(i, 0) * W;
    store(x + i * W, (load(x + i * W) - rows_product(row, x, i)) / load(row + i * W));
  }
}

// x = l^-T x.
template <class T>
static inline void solve_backward(const T* l, T* x, int64_t n) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  for (int64_t i = n; i-- > 0;) {
    const T* row = l + packed(i, 0) * W;
    V at = load(x + i * W) / load(row + i * W);
    store(x + i * W, at);
    for (int64_t q = 0; q < i; ++q) store(x + q * W, load(x + q * W) - load(row + q * W) * at);
  }
}

}  // namespace VARAX_ISA
}  // namespace varax
