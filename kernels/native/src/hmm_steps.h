// What the filter and its adjoint share: rows padded to whole vectors, likelihoods, matrix-vector products.
#pragma once

#include "hmm.h"
#include "vectors.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// No infinities: how much better a state would explain the data, that cannot be there, is a slope without
// bound, and meets with zeros. Sums over a block stay finite too.
template <class T, class V>
VARAX_INLINE V bounded(V x) {
  const V most = V{} + T(sizeof(T) == 4 ? 3.4028234663852886e38 / 256 : 1.7976931348623157e308 / 256);
  x = x > most ? most : x;  // NaN stays
  return x < -most ? -most : x;
}

constexpr int kBlock = 16;  // steps whose likelihoods, sums and quotients are computed together

// Padding: L lanes, and NV vectors a row if known at compile time (otherwise 0).
template <class T, int L, int NV>
struct Rows {
  typedef typename Lanes<T, L>::V V;

  explicit Rows(int64_t states) : states(states), vectors(NV ? NV : (states + L - 1) / L) {}

  int64_t states, vectors;

  VARAX_INLINE int64_t count() const { return NV ? NV : vectors; }
  VARAX_INLINE int64_t width() const { return count() * L; }

  void pad(const T* from, int64_t rows, T* to, T fill) const {
    if (states == width()) {
      std::memcpy(to, from, rows * states * sizeof(T));
      return;
    }
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t j = 0; j < states; ++j) to[t * width() + j] = from[t * states + j];
      for (int64_t j = states; j < width(); ++j) to[t * width() + j] = fill;
    }
  }
  // Rows first, ..., first + count - 1 of `from` after row 0, and there the one before if there is one.
  void pad_after(const T* from, int64_t first, int64_t count, T* to) const {
    const int64_t before = first > 0 ? 1 : 0;
    pad(from + (first - before) * states, count + before, to + (1 - before) * width(), T(0));
  }
  void unpad(const T* from, int64_t rows, T* to) const {
    if (states == width()) {
      std::memcpy(to, from, rows * states * sizeof(T));
      return;
    }
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t j = 0; j < states; ++j) to[t * states + j] = from[t * width() + j];
  }
  void transpose(const T* from, T* to) const {
    for (int64_t i = 0; i < states; ++i)
      for (int64_t j = 0; j < states; ++j) to[j * width() + i] = from[i * states + j];
  }
  T sum(const T* row) const {
    V all = load<V>(row);
    for (int64_t v = 1; v < count(); ++v) all += load<V>(row + v * L);
    return sum_of<T, L>(all);
  }
  T dot(const T* a, const T* b) const {
    V all = load<V>(a) * load<V>(b);
    for (int64_t v = 1; v < count(); ++v) all += load<V>(a + v * L) * load<V>(b + v * L);
    return sum_of<T, L>(all);
  }

  // out_j = sum_i x_i a_ij for the vectors first, ..., first + M - 1 of a row.
  template <int M>
  VARAX_INLINE void tile(const T* x, const T* a, int64_t first, T* out) const {
    V even[M] = {}, odd[M] = {};
    const T* row = a + first * L;
    for (int64_t i = 0; i + 1 < states; i += 2, row += 2 * width()) {
      for (int m = 0; m < M; ++m) even[m] += x[i] * load<V>(row + m * L);
      for (int m = 0; m < M; ++m) odd[m] += x[i + 1] * load<V>(row + width() + m * L);
    }
    if (states % 2)
      for (int m = 0; m < M; ++m) even[m] += x[states - 1] * load<V>(row + m * L);
    for (int m = 0; m < M; ++m) store(out + (first + m) * L, even[m] + odd[m]);
  }

  // x a, for a padded matrix and rows of one vector.
  VARAX_INLINE V product(V x, const T* a) const {
    T lane[L];  // narrow vectors stay in a register, of wide ones a lane is quickest read from memory
    if constexpr (L > 4) store(lane, x);
    V part[4] = {};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) part[i % 4] += (L > 4 ? lane[i] : x[i]) * load<V>(a + i * L);
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  // out = x a, for a padded matrix.
  VARAX_INLINE void product(const T* x, const T* a, T* out) const {
    if constexpr (NV == 1) {
      store(out, product(load<V>(x), a));
    } else {
      int64_t first = 0;
      for (; first + 4 <= count(); first += 4) tile<4>(x, a, first, out);
      if (count() - first >= 2) tile<2>(x, a, first, out), first += 2;
      if (count() - first == 1) tile<1>(x, a, first, out);
    }
  }

  // w = exp(log likelihood - shift), shift the largest of each row (0 if that is not finite).
  void likelihoods(const T* logs, int64_t rows, T* w, T* shift) const {
    const bool whole = states == width();
    if (!whole) pad(logs, rows, w, -__builtin_inf());
    for (int64_t t = 0; t < rows; ++t) {
      const T* row = (whole ? logs : w) + t * width();
      V most = load<V>(row);
      for (int64_t v = 1; v < count(); ++v) {
        const V x = load<V>(row + v * L);
        most = x > most ? x : most;
      }
      const T top = max_of<T, L>(most);
      shift[t] = top - top == 0 ? top : T(0);
    }
    subtract(whole ? logs : w, rows, shift, w);
    exponentials(rows, w);
  }

  void subtract(const T* from, int64_t rows, const T* shift, T* to) const {
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t v = 0; v < count(); ++v) {
        const int64_t at = t * width() + v * L;
        store(to + at, load<V>(from + at) - shift[t]);
      }
  }

  // Of whole blocks, with the widest vectors, whatever the width of a row.
  void exponentials(int64_t rows, T* w) const {
    constexpr int full = kVectorBytes / int(sizeof(T));
    typedef typename Lanes<T, full>::V Wide;
    const int64_t all = (rows + kBlock - 1) / kBlock * kBlock * width();
    for (int64_t i = 0; i < all; i += full) store(w + i, exp_of<T, full>(load<Wide>(w + i)));
  }
};

constexpr int kSteps = 32;  // steps whose outer products are summed in registers

// What an adjoint reads of steps first, ..., first + count - 1: likelihoods by their scale in w, filtered
// probabilities in p from row 1 on; in row 0, if there is one, those of the step before.
template <class T, int L, int NV>
void residuals(const Rows<T, L, NV>& rows, const HmmChain<T>& chain, const T* filtered, const T* shift,
               const T* scale, int64_t first, int64_t count, T* w, T* p) {
  typedef typename Lanes<T, L>::V V;
  rows.pad(chain.log_likelihoods + first * rows.states, count, w, -__builtin_inf());
  rows.subtract(w, count, shift + first, w);
  rows.exponentials(count, w);
  for (int64_t t = 0; t < count; ++t) {
    const T inverse = scale[first + t] == 0 ? T(1) : 1 / scale[first + t];
    T* row = w + t * rows.width();
    for (int64_t v = 0; v < rows.count(); ++v) store(row + v * L, bounded<T>(load<V>(row + v * L) * inverse));
  }
  rows.pad_after(filtered, first, count, p);
}

// total[i] += sum_t x_ti y_t for rows i, i + 1 and M vectors, t in [from, count).
template <int M, class T, int L, int NV>
VARAX_INLINE void add_outer(const Rows<T, L, NV>& rows, const T* x, const T* y, int64_t i, int64_t v, int64_t from,
                            int64_t count, double* total) {
  typedef typename Lanes<T, L>::V V;
  V one[M] = {}, two[M] = {};
  for (int64_t t = from; t < count; ++t) {
    const T* a = x + t * rows.width() + i;
    const T* b = y + t * rows.width() + v * L;
    for (int m = 0; m < M; ++m) one[m] += a[0] * load<V>(b + m * L);
    for (int m = 0; m < M; ++m) two[m] += a[1] * load<V>(b + m * L);
  }
  double* to = total + i * rows.width() + v * L;
  for (int m = 0; m < M; ++m)
    for (int l = 0; l < L; ++l) to[m * L + l] += one[m][l];
  to += rows.width();
  for (int m = 0; m < M; ++m)
    for (int l = 0; l < L; ++l) to[m * L + l] += two[m][l];
}

// total += sum_t x_t y_t', t in [from, count): padded rows, and a padded matrix.
template <class T, int L, int NV>
void add_outer(const Rows<T, L, NV>& rows, const T* x, const T* y, int64_t from, int64_t count, double* total) {
  typedef typename Lanes<T, L>::V V;
  if constexpr (NV == 1) {
    V part[L] = {};
    for (int64_t t = from; t < count; ++t) {
      const T* a = x + t * L;
      const V b = load<V>(y + t * L);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) part[i] += a[i] * b;
    }
    for (int i = 0; i < L; ++i)
      for (int l = 0; l < L; ++l) total[i * L + l] += part[i][l];
  } else {
    for (int64_t i = 0; i < rows.width(); i += 2) {
      int64_t v = 0;
      for (; v + 4 <= rows.count(); v += 4) add_outer<4>(rows, x, y, i, v, from, count, total);
      for (; v < rows.count(); ++v) add_outer<1>(rows, x, y, i, v, from, count, total);
    }
  }
}

// f<L, NV>(args...) for the narrowest vectors that hold `states`, or the widest and many of them.
#define VARAX_HMM_WIDTHS(f, T, states, ...)                                     \
  do {                                                                          \
    constexpr int full = kVectorBytes / int(sizeof(T));                         \
    if (full > 2 && sizeof(T) == 8 && states <= 2) return f<T, 2, 1>(__VA_ARGS__); \
    if (full > 4 && states <= 4) return f<T, (full > 4 ? 4 : full), 1>(__VA_ARGS__); \
    if (full > 8 && states <= 8) return f<T, (full > 8 ? 8 : full), 1>(__VA_ARGS__); \
    if (states <= full) return f<T, full, 1>(__VA_ARGS__);                      \
    return f<T, full, 0>(__VA_ARGS__);                                          \
  } while (0)

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
