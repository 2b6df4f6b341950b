// Small matrices as rows, for one series or for a vector of series: the loops are written once.
//
// In `Single<T, N, true>` a row is a vector register, so that a product of matrices is N^2 multiply-adds of
// rows by broadcast elements; one number is observed at a time. `Single<T, N, false>` serves up to N states,
// padded by zeros, and any number of observations. Of a vector of series, see kalman_lanes.h. Included by
// kernel files only.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#if VARAX_LEVEL == 2
#include <immintrin.h>
#endif

#include "kalman.h"
#include "vector_bits.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed within this file only

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T, int W> struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * W)));
};
template <class T, int W> using Vector = typename VectorOf<T, W>::type;

constexpr int padded(int n) { return n <= 2 ? 2 : n <= 4 ? 4 : 8; }

// The first N of a vector's W numbers from memory, zeros behind them, and back.
template <class T, int N, int W>
VARAX_INLINE Vector<T, W> from_memory(const T* p) {
  Vector<T, W> r{};
  if constexpr (N == W) {
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
#if VARAX_LEVEL == 2
  constexpr int some = (1 << N) - 1;
  if constexpr (sizeof(T) == 4 && W == 4) return (Vector<T, W>)_mm_maskz_loadu_ps(some, p);
  if constexpr (sizeof(T) == 4 && W == 8) return (Vector<T, W>)_mm256_maskz_loadu_ps(some, p);
  if constexpr (sizeof(T) == 8 && W == 2) return (Vector<T, W>)_mm_maskz_loadu_pd(some, p);
  if constexpr (sizeof(T) == 8 && W == 4) return (Vector<T, W>)_mm256_maskz_loadu_pd(some, p);
  if constexpr (sizeof(T) == 8 && W == 8) return (Vector<T, W>)_mm512_maskz_loadu_pd(some, p);
#endif
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) r[j] = p[j];
  return r;
}
template <class T, int N, int W>
VARAX_INLINE void to_memory(const Vector<T, W>& r, T* p) {
  std::memcpy(p, &r, N * sizeof(T));
}

// The transpose of a square of vectors: blocks of S elements change places, S = W / 2, ..., 1.
template <class T, int W, int... Ks>
VARAX_INLINE Vector<T, W> picked(const Vector<T, W>& a, const Vector<T, W>& b) {  // element W + k is b's k
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Ks...);
#else
  return __builtin_shuffle(a, b, Vector<typename Bits<T>::Int, W>{Ks...});
#endif
}
template <class T, int W, int S, int... Js>
VARAX_INLINE void turn(Vector<T, W>* r, std::integer_sequence<int, Js...> all) {
  if constexpr (S > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < W; ++i) {
      if (i & S) continue;
      const Vector<T, W> a = r[i], b = r[i + S];
      r[i] = picked<T, W, (Js & S ? W + Js - S : Js)...>(a, b);
      r[i + S] = picked<T, W, (Js & S ? W + Js : Js + S)...>(a, b);
    }
    turn<T, W, S / 2>(r, all);
  }
}

template <class T, int W>
VARAX_INLINE T sum_of(const Vector<T, W>& v) {
  if constexpr (W == 2) {
    return v[0] + v[1];
  } else {
    Vector<T, W / 2> lo, hi;
    std::memcpy(&lo, &v, sizeof(lo));
    std::memcpy(&hi, reinterpret_cast<const char*>(&v) + sizeof(lo), sizeof(hi));
    return sum_of<T, W / 2>(lo + hi);
  }
}

#if defined(VARAX_X86) && VARAX_LEVEL == 0
constexpr int kMostUnrolled = 0;
#else
constexpr int kMostUnrolled = 4;
#endif

// One series. N and MX are what is stored, n() and m() what is used; padding is zero, and stays so.
template <class T_, int N_, bool exact_>
struct Single {
  static constexpr bool exact = exact_;
  static constexpr int N = N_, MX = exact ? 1 : kKalmanMostObserved, lanes = 1, W = padded(N);
  using T = T_;
  using E = T;
  using I = typename Bits<T>::Int;
  using Mask = bool;
  using Row = Vector<T, W>;
  const int64_t series;
  const int states, observed;

  Single(int64_t group, const KalmanModel<T>& of) : series(group), states(int(of.n)), observed(int(of.m)) {}
  VARAX_INLINE int n() const { return exact ? N : states; }
  VARAX_INLINE int m() const { return exact ? 1 : observed; }
  static VARAX_INLINE Row zero() { return Row{}; }
  static VARAX_INLINE E get(const Row& r, int j) { return r[j]; }
  static VARAX_INLINE void set(Row& r, int j, E x) { r[j] = x; }
  VARAX_INLINE E dot(const Row& a, const Row& b) const { return sum_of<T, W>(a * b); }
  static VARAX_INLINE E broadcast(T x) { return x; }
  static VARAX_INLINE I bits(E x) { return bits_of(x); }
  static VARAX_INLINE E number(I i) { return number_of<T>(i); }
  // f(i) for all elements of a row; for all rows, in a loop if they do not fit in registers; and for those
  // that are used, as they lie in memory.
  template <class F>
  static VARAX_INLINE void each(const F& f) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) f(i);
  }
  template <class F>
  static VARAX_INLINE void each_row(const F& f) {
    if constexpr (N <= kMostUnrolled) {
      each(f);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < N; ++i) f(i);
    }
  }
  template <class F>
  VARAX_INLINE void each_used(const F& f) const {
    if constexpr (exact) {
      each(f);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < states; ++i) f(i);
    }
  }
  template <class U>
  VARAX_INLINE U load(const Strided<const U>& a, int64_t t, int64_t k) const {
    return a.data[series * a.series + t * a.step + k];
  }
  VARAX_INLINE Mask seen(const Strided<const uint8_t>& a, int64_t t, int64_t k) const {
    return load(a, t, k) != 0;
  }
  VARAX_INLINE void load_rows(const Strided<const T>& a, int64_t t, int count, Row* rows) const {
    const T* p = a.data + series * a.series + t * a.step;
    for (int i = 0; i < count; ++i) {
      if constexpr (exact) {
        rows[i] = from_memory<T, N, W>(p + i * N);
      } else {
        rows[i] = zero();
        each_used([&](int j) VARAX_LAMBDA { rows[i][j] = p[i * n() + j]; });
      }
    }
  }
  VARAX_INLINE void store_rows(const Strided<T>& a, int64_t t, int count, const Row* rows) const {
    T* p = a.data + series * a.series + t * a.step;
    for (int i = 0; i < count; ++i) {
      if constexpr (exact) {
        to_memory<T, N, W>(rows[i], p + i * N);
      } else {
        each_used([&](int j) VARAX_LAMBDA { p[i * n() + j] = rows[i][j]; });
      }
    }
  }
  // `size` numbers from memory, and back.
  VARAX_INLINE void gather(const Strided<const T>& a, int64_t t, int size, E* to) const {
#pragma GCC unroll 1
    for (int k = 0; k < size; ++k) to[k] = load(a, t, k);
  }
  VARAX_INLINE void scatter(const Strided<T>& a, int64_t t, int size, const E* from) const {
    T* p = a.data + series * a.series + t * a.step;
#pragma GCC unroll 1
    for (int k = 0; k < size; ++k) p[k] = from[k];
  }
  // The same of successive steps, each in `width` numbers.
  VARAX_INLINE void gather_steps(const Strided<const T>& a, int64_t t, int steps, int size, E* to, int width) const {
    for (int i = 0; i < steps; ++i) gather(a, t + i, size, to + i * width);
  }
  VARAX_INLINE void scatter_steps(const Strided<T>& a, int64_t t, int steps, int size, const E* from, int width) const {
    for (int i = 0; i < steps; ++i) scatter(a, t + i, size, from + i * width);
  }
  static VARAX_INLINE T lane(E x, int) { return x; }
  static VARAX_INLINE I lane_of(I x, int) { return x; }
};

// sum_k coefficients[k] * rows[k]. Of one series and many states, in two chains, for the sake of latency.
template <class X>
VARAX_INLINE typename X::Row combine(const X& x, const typename X::Row& coefficients, const typename X::Row* rows) {
  typename X::Row s = X::zero();
  if constexpr (X::lanes == 1 && X::N > 4) {
    typename X::Row odd = X::zero();
    x.each([&](int k) VARAX_LAMBDA {
      typename X::Row& sum = k % 2 ? odd : s;
      sum = X::get(coefficients, k) * rows[k] + sum;
    });
    return s + odd;
  }
  x.each([&](int k) VARAX_LAMBDA { s = X::get(coefficients, k) * rows[k] + s; });
  return s;
}

template <class X>
VARAX_INLINE void transpose(const X& x, const typename X::Row* from, typename X::Row* to) {
  if constexpr (X::lanes == 1) {
    constexpr int W = X::W;
    typename X::Row all[W];
#pragma GCC unroll 8
    for (int i = 0; i < W; ++i) all[i] = i < X::N ? from[i] : X::zero();
    turn<typename X::T, W, W / 2>(all, std::make_integer_sequence<int, W>());
#pragma GCC unroll 8
    for (int i = 0; i < X::N; ++i) to[i] = all[i];
    return;
  }
  x.each_row([&](int i) VARAX_LAMBDA {
    typename X::Row row = X::zero();
    x.each([&](int j) VARAX_LAMBDA { X::set(row, j, X::get(from[j], i)); });
    to[i] = row;
  });
}

// r becomes r + r'.
template <class X>
VARAX_INLINE void add_transpose(const X& x, typename X::Row* r) {
  typename X::Row back[X::N];
  transpose(x, r, back);
  x.each_row([&](int i) VARAX_LAMBDA { r[i] = r[i] + back[i]; });
}

// (a + a') / 2, of an array in memory.
template <class X>
VARAX_INLINE void load_symmetric(const X& x, const Strided<const typename X::T>& a, int64_t t, typename X::Row* r) {
  for (int i = x.n(); i < X::N; ++i) r[i] = X::zero();
  x.load_rows(a, t, x.n(), r);
  x.each_row([&](int i) VARAX_LAMBDA { r[i] = X::broadcast(typename X::T(0.5)) * r[i]; });
  add_transpose(x, r);
}

// a = f(i, j), a symmetric matrix: in lanes, one triangle is computed. Of one series, rows are quicker, and
// `row(i)` gives them; what rounding puts between the triangles would grow from step to step where A does not shrink,
// so that row(i) gives half of it and the transpose is added.
template <bool halved, class X, class F, class G>
VARAX_INLINE void symmetric(const X& x, typename X::Row* a, const F& f, const G& row) {
  if constexpr (X::lanes > 1) {
    x.upper([&](int i, int j) VARAX_LAMBDA { a[j].e[i] = a[i].e[j] = f(i, j); });
  } else {
    x.each_row([&](int i) VARAX_LAMBDA { a[i] = row(i); });
    if constexpr (halved) add_transpose(x, a);
  }
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
