// Small matrices as rows, for one series or for a vector of series: the loops are written once.
//
// In `Single<T, N>` a row is a vector register, so that a product of matrices is N^2 multiply-adds of rows
// by broadcast elements. In `Lanes<T, N>` every element is a vector that holds the same element of several
// series, and a row is N of them. Included by kernel files only: everything is in an anonymous namespace.
#pragma once

#include <cmath>
#include <cstring>

#include "kalman.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed within this file only

namespace varax {
namespace VARAX_ISA {
namespace {

#define VARAX_INLINE inline __attribute__((always_inline))
#define VARAX_NOINLINE __attribute__((noinline))
#define VARAX_LAMBDA __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T> struct Bits;
template <> struct Bits<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127;
};
template <> struct Bits<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
};

template <class T, int W> struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * W)));
};
template <class T, int W> using Vector = typename VectorOf<T, W>::type;

// Steps that are moved between memory and lanes at once, `width` vectors each: as many as stay in the cache.
constexpr int window(int width) { return width <= 32 ? 16 : width <= 64 ? 4 : 2; }

constexpr int padded(int n) { return n <= 2 ? 2 : n <= 4 ? 4 : 8; }

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

// One series.
template <class T_, int N_>
struct Single {
  static constexpr int N = N_, lanes = 1, W = padded(N_);
  using T = T_;
  using E = T;
  using I = typename Bits<T>::Int;
  using Mask = bool;
  using Row = Vector<T, W>;
  int64_t series;

  explicit Single(int64_t group, int64_t) : series(group) {}
  static VARAX_INLINE Row zero() { return Row{}; }
  static VARAX_INLINE E get(const Row& r, int j) { return r[j]; }
  static VARAX_INLINE void set(Row& r, int j, E x) { r[j] = x; }
  static VARAX_INLINE E dot(const Row& a, const Row& b) { return sum_of<T, W>(a * b); }
  static VARAX_INLINE E broadcast(T x) { return x; }
  static VARAX_INLINE I bits(E x) { I i; std::memcpy(&i, &x, sizeof(i)); return i; }
  static VARAX_INLINE E number(I i) { E x; std::memcpy(&x, &i, sizeof(x)); return x; }
  template <class U>
  VARAX_INLINE U load(const Strided<const U>& a, int64_t t, int64_t k) const {
    return a.data[series * a.series + t * a.step + k];
  }
  VARAX_INLINE Mask seen(const Strided<const uint8_t>& a, int64_t t, int64_t k) const {
    return load(a, t, k) != 0;
  }
  VARAX_INLINE void store(const Strided<T>& a, int64_t t, int64_t k, E x) const {
    a.data[series * a.series + t * a.step + k] = x;
  }
  template <class F>
  static VARAX_INLINE void each(const F& f) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) f(i);
  }
  VARAX_INLINE void load_rows(const Strided<const T>& a, int64_t t, int first, int count, Row* rows) const {
    for (int i = 0; i < count; ++i) {
      rows[i] = zero();
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) rows[i][j] = load(a, t, (first + i) * N + j);
    }
  }
  VARAX_INLINE void store_rows(const Strided<T>& a, int64_t t, int count, const Row* rows) const {
    for (int i = 0; i < count; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) store(a, t, i * N + j, rows[i][j]);
    }
  }
  VARAX_INLINE void scatter(const Strided<T>& a, int64_t t, int first, int size, const E* from) const {
    for (int k = 0; k < size; ++k) store(a, t, first + k, from[k]);
  }
  VARAX_INLINE void gather_steps(const Strided<const T>& a, int64_t t, int, int size, E* to, int, int) const {
    for (int k = 0; k < size; ++k) to[k] = load(a, t, k);
  }
  VARAX_INLINE void scatter_steps(const Strided<T>& a, int64_t t, int, int size, const E* from, int, int) const {
    for (int k = 0; k < size; ++k) store(a, t, k, from[k]);
  }
  static VARAX_INLINE T lane(E x, int) { return x; }
  static VARAX_INLINE I lane_of(I x, int) { return x; }
};

// As many series as a vector has lanes; those beyond the last repeat it and are not stored.
template <class T_, int N_>
struct Lanes {
  static constexpr int N = N_, lanes = kBytes / sizeof(T_);
  using T = T_;
  using E = Vector<T, lanes>;
  using I = Vector<typename Bits<T>::Int, lanes>;
  using Mask = I;
  struct Row {
    E e[N];
    friend VARAX_INLINE Row operator+(const Row& a, const Row& b) {
      Row c;
      for (int j = 0; j < N; ++j) c.e[j] = a.e[j] + b.e[j];
      return c;
    }
    friend VARAX_INLINE Row operator-(const Row& a, const Row& b) {
      Row c;
      for (int j = 0; j < N; ++j) c.e[j] = a.e[j] - b.e[j];
      return c;
    }
    friend VARAX_INLINE Row operator*(const E& x, const Row& a) {
      Row c;
      for (int j = 0; j < N; ++j) c.e[j] = x * a.e[j];
      return c;
    }
  };
  int64_t at[lanes];
  int count;

  explicit Lanes(int64_t group, int64_t batch) {
    count = 0;
    for (int l = 0; l < lanes; ++l) {
      int64_t s = group * lanes + l;
      if (s < batch) count = l + 1;
      at[l] = s < batch ? s : batch - 1;
    }
  }
  static VARAX_INLINE Row zero() {
    Row r;
    for (int j = 0; j < N; ++j) r.e[j] = E{};
    return r;
  }
  static VARAX_INLINE E get(const Row& r, int j) { return r.e[j]; }
  static VARAX_INLINE void set(Row& r, int j, E x) { r.e[j] = x; }
  static VARAX_INLINE E dot(const Row& a, const Row& b) {
    E s = a.e[0] * b.e[0];
    for (int j = 1; j < N; ++j) s += a.e[j] * b.e[j];
    return s;
  }
  static VARAX_INLINE E broadcast(T x) { return x - E{}; }
  static VARAX_INLINE I bits(E x) { return (I)x; }
  static VARAX_INLINE E number(I i) { return (E)i; }
  template <class F>
  static VARAX_INLINE void each(const F& f) {
#pragma GCC unroll 1
    for (int i = 0; i < N; ++i) f(i);
  }
  // From `size` numbers of each series to `size` vectors, and back.
  VARAX_NOINLINE void gather(const Strided<const T>& a, int64_t t, int first, int size, E* to) const {
    const T* p = a.data + t * a.step + first;
    T* flat = reinterpret_cast<T*>(to);
    for (int k = 0; k < size; ++k)
#pragma GCC unroll 1
      for (int l = 0; l < lanes; ++l) flat[k * lanes + l] = p[at[l] * a.series + k];
  }
  VARAX_NOINLINE void scatter(const Strided<T>& a, int64_t t, int first, int size, const E* from) const {
    T* p = a.data + t * a.step + first;
    const T* flat = reinterpret_cast<const T*>(from);
#pragma GCC unroll 1
    for (int l = 0; l < count; ++l)
#pragma GCC unroll 1
      for (int k = 0; k < size; ++k) p[at[l] * a.series + k] = flat[k * lanes + l];
  }
  // The same for steps t .. t + steps - 1 at once, each in `width` vectors: what a series has at neighbouring
  // times lies together, and lines of the cache are visited once. Those `next` steps away are asked for early.
  VARAX_NOINLINE void gather_steps(const Strided<const T>& a, int64_t t, int steps, int size, E* to, int width, int next) const {
    T* flat = reinterpret_cast<T*>(to);
    for (int l = 0; l < lanes; ++l) {
      const T* p = a.data + at[l] * a.series + t * a.step;
      for (int k = 0; k < steps * size; k += 64 / sizeof(T)) __builtin_prefetch(p + k + next * size);
      for (int i = 0; i < steps; ++i)
#pragma GCC unroll 1
        for (int k = 0; k < size; ++k) flat[(i * width + k) * lanes + l] = *p++;
    }
  }
  VARAX_NOINLINE void scatter_steps(const Strided<T>& a, int64_t t, int steps, int size, const E* from, int width, int next) const {
    const T* flat = reinterpret_cast<const T*>(from);
    for (int l = 0; l < count; ++l) {
      T* p = a.data + at[l] * a.series + t * a.step;
      for (int k = 0; k < steps * size; k += 64 / sizeof(T)) __builtin_prefetch(p + k + next * size, 1);
      for (int i = 0; i < steps; ++i)
#pragma GCC unroll 1
        for (int k = 0; k < size; ++k) *p++ = flat[(i * width + k) * lanes + l];
    }
  }
  VARAX_INLINE E load(const Strided<const T>& a, int64_t t, int64_t k) const {
    E x;
    gather(a, t, int(k), 1, &x);
    return x;
  }
  VARAX_INLINE void load_rows(const Strided<const T>& a, int64_t t, int first, int many, Row* rows) const {
    gather(a, t, first * N, many * N, rows[0].e);
  }
  VARAX_INLINE void store_rows(const Strided<T>& a, int64_t t, int many, const Row* rows) const {
    scatter(a, t, 0, many * N, rows[0].e);
  }
  VARAX_NOINLINE Mask seen(const Strided<const uint8_t>& a, int64_t t, int64_t k) const {
    Mask x;
#pragma GCC unroll 1
    for (int l = 0; l < lanes; ++l) x[l] = -(a.data[at[l] * a.series + t * a.step + k] != 0);
    return x;
  }
  VARAX_INLINE void store(const Strided<T>& a, int64_t t, int64_t k, E x) const { scatter(a, t, int(k), 1, &x); }
  static VARAX_INLINE T lane(E x, int l) { return x[l]; }
  static VARAX_INLINE typename Bits<T>::Int lane_of(I x, int l) { return x[l]; }
};

// A sum over time: of blocks, compensated (Neumaier), so that float32 is right at a million steps.
template <class E>
struct Sum {
  E block, total, lost;
  VARAX_INLINE void clear() { block = total = lost = E{}; }
  VARAX_INLINE void flush() {
    E next = total + block, back = next - total;
    lost += (total - (next - back)) + (block - back);
    total = next;
    block = E{};
  }
  VARAX_INLINE E value() { flush(); return total + lost; }
};

// The logarithm of a product of positive numbers: mantissas multiplied, exponents added, one logarithm at the
// end of a block. A factor that is not positive, or not finite, makes it NaN.
template <class X>
struct LogProduct {
  using E = typename X::E;
  using I = typename X::I;
  using B = Bits<typename X::T>;
  E mantissa;
  I exponent, bad;
  VARAX_INLINE void clear() {
    mantissa = X::broadcast(1);
    exponent = bad = I{};
  }
  static VARAX_INLINE void divide(E& x, I& exponent) {  // x becomes its mantissa
    using Int = typename B::Int;
    I i = X::bits(x);
    exponent += (i >> B::mantissa) - Int(B::bias);
    x = X::number((i & ((Int(1) << B::mantissa) - 1)) | (Int(B::bias) << B::mantissa));
  }
  VARAX_INLINE void split() { divide(mantissa, exponent); }
  VARAX_INLINE void times(E x) {
    using Int = typename B::Int;
    constexpr Int infinity = Int(2 * B::bias + 1) << B::mantissa;
    I i = X::bits(x);
    bad |= (i <= 0) | (i >= infinity);
    divide(x, exponent);
    mantissa *= x;
  }
  double log_of(int l) const {
    if (X::lane_of(bad, l)) return std::nan("");
    return std::log(double(X::lane(mantissa, l))) + 0.6931471805599453 * double(X::lane_of(exponent, l));
  }
};

template <class X>
VARAX_INLINE void transpose(const typename X::Row* from, typename X::Row* to) {
  X::each([&](int i) VARAX_LAMBDA {
    typename X::Row row = X::zero();
    X::each([&](int j) VARAX_LAMBDA { X::set(row, j, X::get(from[j], i)); });
    to[i] = row;
  });
}

// (a + a') / 2, of an array in memory.
template <class X>
VARAX_INLINE void load_symmetric(const X& x, const Strided<const typename X::T>& a, int64_t t, typename X::Row* r) {
  typename X::Row back[X::N] = {};
  x.load_rows(a, t, 0, X::N, r);
  transpose<X>(r, back);
  auto half = X::broadcast(typename X::T(0.5));
  X::each([&](int i) VARAX_LAMBDA { r[i] = half * r[i] + half * back[i]; });
}

// sum_k coefficients[k] * rows[k]
template <class X>
VARAX_INLINE typename X::Row combine(const typename X::Row& coefficients, const typename X::Row* rows) {
  typename X::Row s = X::zero();
  X::each([&](int k) VARAX_LAMBDA { s = X::get(coefficients, k) * rows[k] + s; });
  return s;
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
