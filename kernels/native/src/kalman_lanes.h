// As many series as a vector has lanes: every element is a vector that holds the same element of several
// series, and a row is N of them. Series beyond the last repeat it and are not stored. Kernel files only.
#pragma once

#include "kalman_rows.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T_, int N_>
struct Lanes {
  static constexpr int N = N_, MX = 1, lanes = kVectorBytes / sizeof(T_);
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
    friend VARAX_INLINE Row operator-(const Row& a) {
      Row c;
      for (int j = 0; j < N; ++j) c.e[j] = -a.e[j];
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

  Lanes(int64_t group, const KalmanModel<T>& of) {
    count = 0;
    for (int l = 0; l < lanes; ++l) {
      int64_t s = group * lanes + l;
      if (s < of.batch) count = l + 1;
      at[l] = s < of.batch ? s : of.batch - 1;
    }
  }
  static constexpr int n() { return N; }
  static constexpr int m() { return 1; }
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
  // Small matrices stay in registers; larger ones do not fit, and are loops.
  template <class F>
  static VARAX_INLINE void each(const F& f) {
    if constexpr (N <= 3) {
#pragma GCC unroll 3
      for (int i = 0; i < N; ++i) f(i);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < N; ++i) f(i);
    }
  }
  template <class F>
  static VARAX_INLINE void each_row(const F& f) {
    each(f);
  }
  template <class F>
  static VARAX_INLINE void each_used(const F& f) {
    each(f);
  }
  // f(i, j) for i <= j.
  template <class F>
  static VARAX_INLINE void upper(const F& f) {
    if constexpr (N <= 3) {
#pragma GCC unroll 3
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 3
        for (int j = i; j < N; ++j) f(i, j);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 1
        for (int j = i; j < N; ++j) f(i, j);
    }
  }
  // From `size` numbers of each series to `size` vectors, and back; of `steps` successive times, each in
  // `width` vectors: what a series has at neighbouring times lies together.
  VARAX_NOINLINE void gather_steps(const Strided<const T>& a, int64_t t, int steps, int size, E* to, int width) const {
    T* flat = reinterpret_cast<T*>(to);
    for (int l = 0; l < lanes; ++l) {
      const T* p = a.data + at[l] * a.series + t * a.step;
      for (int i = 0; i < steps; ++i)
#pragma GCC unroll 1
        for (int k = 0; k < size; ++k) flat[(i * width + k) * lanes + l] = p[i * a.step + k];
    }
  }
  VARAX_NOINLINE void scatter_steps(const Strided<T>& a, int64_t t, int steps, int size, const E* from, int width) const {
    const T* flat = reinterpret_cast<const T*>(from);
    for (int l = 0; l < count; ++l) {
      T* p = a.data + at[l] * a.series + t * a.step;
      for (int i = 0; i < steps; ++i)
#pragma GCC unroll 1
        for (int k = 0; k < size; ++k) p[i * a.step + k] = flat[(i * width + k) * lanes + l];
    }
  }
  VARAX_INLINE void gather(const Strided<const T>& a, int64_t t, int size, E* to) const {
    gather_steps(a, t, 1, size, to, size);
  }
  VARAX_INLINE void scatter(const Strided<T>& a, int64_t t, int size, const E* from) const {
    scatter_steps(a, t, 1, size, from, size);
  }
  VARAX_INLINE E load(const Strided<const T>& a, int64_t t, int64_t k) const {
    Strided<const T> from = a;
    from.data += k;
    E x;
    gather(from, t, 1, &x);
    return x;
  }
  VARAX_INLINE void load_rows(const Strided<const T>& a, int64_t t, int many, Row* rows) const {
    gather(a, t, many * N, rows[0].e);
  }
  VARAX_INLINE void store_rows(const Strided<T>& a, int64_t t, int many, const Row* rows) const {
    scatter(a, t, many * N, rows[0].e);
  }
  VARAX_NOINLINE Mask seen(const Strided<const uint8_t>& a, int64_t t, int64_t k) const {
    Mask x;
#pragma GCC unroll 1
    for (int l = 0; l < lanes; ++l) x[l] = -(a.data[at[l] * a.series + t * a.step + k] != 0);
    return x;
  }
  static VARAX_INLINE T lane(E x, int l) { return x[l]; }
  static VARAX_INLINE typename Bits<T>::Int lane_of(I x, int l) { return x[l]; }
};

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
