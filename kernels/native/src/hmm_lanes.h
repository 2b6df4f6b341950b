// Many chains of few states, one chain a lane: what their loops share. Included by kernel files only.
#pragma once

#include "hmm_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// The chains from, ..., from + count - 1 of a batch; lanes beyond them repeat the last one.
template <class T, int K>
struct Group {
  static constexpr int L = kVectorBytes / int(sizeof(T));
  typedef typename Lanes<T, L>::V V;
  typedef typename Lanes<T, L>::I I;

  const HmmBatch<T>& batch;
  const int64_t from, count, steps, states_;
  Scratch<V> matrix, w, p, q, more;

  Group(const HmmBatch<T>& batch, int64_t from, int64_t count)
      : batch(batch), from(from), count(count), steps(batch.first.steps), states_(batch.first.states),
        matrix(states_ * states_), w(kBlock * states_), p((kBlock + 1) * states_), q(kBlock * states_),
        more(kBlock * states_) {
    if (!batch.first.varying && steps > 1) fill(matrix.at, batch.first.transitions, batch.transitions_stride, states_ * states_);
  }

  VARAX_INLINE int64_t states() const { return K ? K : states_; }
  int64_t chain(int lane) const { return from + (lane < count ? lane : count - 1); }

  // to[i] = the chains' at[i], for `many` numbers in a row of each chain.
  void fill(V* to, const T* at, int64_t stride, int64_t many) const {
    T* lanes = reinterpret_cast<T*>(to);
    for (int l = 0; l < L; ++l) {
      const T* source = at + chain(l) * stride;
      for (int64_t i = 0; i < many; ++i) lanes[i * L + l] = source[i];
    }
  }
  void spill(const V* rows, T* at, int64_t stride, int64_t many) const {
    const T* lanes = reinterpret_cast<const T*>(rows);
    for (int l = 0; l < count; ++l) {
      T* target = at + (from + l) * stride;
      for (int64_t i = 0; i < many; ++i) target[i] = lanes[i * L + l];
    }
  }
  const V* transitions(int64_t t) {
    if (batch.first.varying) {
      const int64_t square = states() * states();
      fill(matrix.at, batch.first.transitions + (t - 1) * square, batch.transitions_stride, square);
    }
    return matrix.at;
  }
  void logs(int64_t first, int64_t rows) {
    const HmmChain<T>& c = batch.first;
    fill(w.at, c.log_likelihoods + first * states(), batch.log_likelihoods_stride, rows * states());
  }
  // What an adjoint reads of steps first, ..., first + rows - 1: likelihoods by their scale in w, the scales,
  // filtered probabilities in p from row 1 on; in row 0, if there is one, those of the step before.
  template <class Io>
  void residuals(const Io& io, int64_t first, int64_t rows, V* scale) {
    const int64_t k = states();
    const V zero = {};
    V shift[kBlock];
    logs(first, rows);
    fill_after(p.at, io.filtered, first, rows);
    fill(shift, io.shift + first, steps, rows);
    fill(scale, io.scale + first, steps, rows);
    for (int64_t t = 0; t < rows; ++t) {
      V* x = w.at + t * k;
      const V inverse = T(1) / (scale[t] == zero ? zero + T(1) : scale[t]);
      for (int64_t j = 0; j < k; ++j) x[j] = bounded<T>(exp_of<T, L>(x[j] - shift[t]) * inverse);
    }
  }
  // Rows first, ..., first + rows - 1 of `at` after row 0, and there the one before if there is one.
  void fill_after(V* to, const T* at, int64_t first, int64_t rows) const {
    const int64_t k = states(), before = first > 0 ? 1 : 0;
    fill(to + (1 - before) * k, at + (first - before) * k, steps * k, (rows + before) * k);
  }
};

// run(group) for the chains from, ..., from + count - 1, each an Of<T, states>.
template <template <class, int> class Of, class T, int K, class F>
void groups(const HmmBatch<T>& batch, int64_t from, int64_t count, F run) {
  constexpr int L = Of<T, K>::L;
  for (int64_t b = from; b < from + count; b += L) {
    Of<T, K> group(batch, b, from + count - b < L ? from + count - b : L);
    run(group);
  }
}

template <template <class, int> class Of, class T, class F>
void lanes(const HmmBatch<T>& batch, int64_t from, int64_t count, F run) {
  switch (batch.first.states) {
    case 2: return groups<Of, T, 2>(batch, from, count, run);
    case 3: return groups<Of, T, 3>(batch, from, count, run);
    case 4: return groups<Of, T, 4>(batch, from, count, run);
    default: return groups<Of, T, 0>(batch, from, count, run);
  }
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
