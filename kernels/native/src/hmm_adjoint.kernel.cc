// The adjoint of the filter: forward-backward. With p_t the filtered probabilities, c_t the scale,
// w_t = exp(log likelihood - shift), and bars for cotangents,
//
//     a_t = pbar_t - <pbar_t, p_t> + gbar,   log_likelihood_bar_t = p_t * a_t,
//     q_t = a_t * w_t / c_t   (the cotangent of what was predicted),
//     pbar_{t-1} = A_t q_t + filtered_bar_{t-1},   A_bar_t = p_{t-1} q_t^T.
//
// Without filtered_bar, <pbar_t, p_t> = gbar but for rounding, which is then taken out once a block.
#include "hmm_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T, int L, int NV>
struct Adjoint {
  typedef typename Lanes<T, L>::V V;

  const HmmChain<T>& chain;
  const HmmAdjoint<T>& io;
  Rows<T, L, NV> rows;
  Scratch<T> matrix, w, p, q, bar;
  Scratch<double> total;
  bool exact;

  Adjoint(const HmmChain<T>& chain, const HmmAdjoint<T>& io)
      : chain(chain), io(io), rows(chain.states), matrix(rows.width() * rows.width()),
        w(kSteps * rows.width()), p((kSteps + 1) * rows.width()), q(kSteps * rows.width()),
        bar(rows.width()), total(rows.width() * rows.width()), exact(io.filtered_bar != nullptr) {
    if (!chain.varying && chain.steps > 1) rows.transpose(chain.transitions, matrix.at);
    for (int64_t t = 0; t < chain.steps; ++t) exact |= !(io.scale[t] > 0);
  }

  // A_t x, for transitions that vary.
  void back(int64_t t, const T* x, T* to) {
    const T* a = chain.transitions + (t - 1) * rows.states * rows.states;
    if (rows.states != rows.width()) {
      rows.pad(a, rows.states, matrix.at, T(0));
      a = matrix.at;
    }
    for (int64_t i = 0; i < rows.states; ++i) to[i] = rows.dot(a + i * rows.width(), x);
  }

  void add_filtered_bar(int64_t t) {
    if (io.filtered_bar == nullptr) return;
    for (int64_t j = 0; j < rows.states; ++j) bar.at[j] += io.filtered_bar[t * rows.states + j];
  }

  void steps(int64_t first, int64_t count) {
    const T g = *io.evidence_bar, *scale = io.scale + first, *constant = matrix.at;
    const int64_t width = rows.width(), vectors = rows.count();
    const bool each = exact, varying = chain.varying;
    T *bars = bar.at, *to = w.at + count * width, *cotangent = q.at + count * width;
    const T* now = p.at + (count + 1) * width;
    V last = load<V>(bars);
    for (int64_t t = count - 1; t >= 0; --t) {
      to -= width, cotangent -= width, now -= width;
      T add = 0;
      if (each || t == count - 1) add = (scale[t] == 0 ? T(0) : g) - rows.dot(bars, now);
      for (int64_t v = 0; v < vectors; ++v) {
        const V a = (NV == 1 ? last : load<V>(bars + v * L)) + add;
        const V x = bounded<T>(a * load<V>(to + v * L));
        store(cotangent + v * L, x);
        store(to + v * L, a * load<V>(now + v * L));  // w is not needed any more
        if constexpr (NV == 1) last = x;
      }
      if (first + t == 0) break;
      if (varying) {
        back(first + t, cotangent, bars);
        if constexpr (NV == 1) last = load<V>(bars);
      } else if constexpr (NV == 1) {
        last = rows.product(last, constant);
        if (each || t == 0) store(bars, last);
      } else {
        rows.product(cotangent, constant, bars);
      }
      if (each) {
        add_filtered_bar(first + t - 1);
        last = load<V>(bars);
      }
    }
    rows.unpad(w.at, count, io.log_likelihoods_bar + first * rows.states);
  }

  void transitions(int64_t first, int64_t count) {
    const int64_t from = first == 0 ? 1 : 0;
    const int64_t states = rows.states;
    if (chain.varying) {
      for (int64_t t = from; t < count; ++t) {
        T* to = io.transitions_bar + (first + t - 1) * states * states;
        const T *x = p.at + t * rows.width(), *y = q.at + t * rows.width();
        for (int64_t i = 0; i < states; ++i)
          for (int64_t j = 0; j < states; ++j) to[i * states + j] = x[i] * y[j];
      }
      return;
    }
    add_outer(rows, p.at, q.at, from, count, total.at);
  }

  void run() {
    const int64_t states = rows.states;
    if (chain.steps > 0) add_filtered_bar(chain.steps - 1);
    const int64_t blocks = (chain.steps + kSteps - 1) / kSteps;
    for (int64_t b = blocks - 1; b >= 0; --b) {
      const int64_t first = b * kSteps;
      const int64_t count = chain.steps - first < kSteps ? chain.steps - first : kSteps;
      residuals(rows, chain, io.filtered, io.shift, io.scale, first, count, w.at, p.at);
      steps(first, count);
      transitions(first, count);
    }
    for (int64_t j = 0; j < states; ++j) io.initial_bar[j] = chain.steps > 0 ? q.at[j] : T(0);
    if (chain.varying) return;
    for (int64_t i = 0; i < states; ++i)
      for (int64_t j = 0; j < states; ++j)
        io.transitions_bar[i * states + j] = T(bounded<T>(total.at[i * rows.width() + j]));
  }
};

template <class T, int L, int NV>
void adjoint(const HmmChain<T>& chain, const HmmAdjoint<T>& io) {
  Adjoint<T, L, NV>(chain, io).run();
}

template <class T>
void adjoint(const HmmChain<T>& chain, const HmmAdjoint<T>& io) {
  VARAX_HMM_WIDTHS(adjoint, T, chain.states, chain, io);
}

}  // namespace

void hmm_adjoint_f32(HmmChain<float> chain, HmmAdjoint<float> io) { adjoint(chain, io); }
void hmm_adjoint_f64(HmmChain<double> chain, HmmAdjoint<double> io) { adjoint(chain, io); }

}  // namespace VARAX_ISA
}  // namespace varax
