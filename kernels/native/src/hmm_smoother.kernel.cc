// The adjoint of the smoother. What it gives, smoothed probabilities and expected transitions, is the slope
// of the evidence in log likelihoods and log transitions; a second derivative is symmetric, so that their
// cotangents pull back to the *tangent* of the slope, along themselves. With d for that tangent, s for the
// cotangent of the smoothed, B = A * that of the transitions, b and q as in hmm_adjoint, g the evidence's:
//
//     y = w_t / c_t * (dp_{t-1} A_t + p_{t-1} B_t) + p_t * s_t,    r_t = sum(y),    dp_t = y - p_t r_t
//     dq_t = w_t / c_t * db_t + q_t * (s_t - r_t),    db_{t-1} = A_t dq_t + B_t q_t,
//     log_likelihood_bar_t = dp_t * b_t + p_t * db_t + g p_t * b_t.
#include "hmm_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T, int L, int NV>
struct SmootherAdjoint {
  typedef typename Lanes<T, L>::V V;

  const HmmChain<T>& chain;
  const HmmSmootherAdjoint<T>& io;
  Rows<T, L, NV> rows;
  const bool pairs;
  // A and B, or their transposes; blocks of rows, those of p and dp with the step before in front
  Scratch<T> a, b, w, p, dp, s, q, e, bar, dbar, more, r;
  Scratch<double> total, expected;

  SmootherAdjoint(const HmmChain<T>& chain, const HmmSmootherAdjoint<T>& io)
      : chain(chain), io(io), rows(chain.states), pairs(io.pairs_bar != nullptr), a(square()), b(square()),
        w(block()), p(block() + rows.width()), dp(block() + rows.width()), s(block()), q(block()), e(block()),
        bar(rows.width()), dbar(rows.width()), more(rows.width()), r(chain.steps), total(square()),
        expected(square()) {}

  int64_t square() const { return rows.width() * rows.width(); }
  int64_t block() const { return kSteps * rows.width(); }
  int64_t matrix(int64_t t) const { return chain.varying ? (t - 1) * rows.states * rows.states : 0; }

  // A_t and B_t; transposed if they are to be multiplied from the left.
  void transitions(int64_t t, bool transposed) {
    const int64_t n = rows.states, by = transposed ? 1 : rows.width(), along = transposed ? rows.width() : 1;
    const T *from = chain.transitions + matrix(t), *times = pairs ? io.pairs_bar + matrix(t) : nullptr;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        a.at[i * by + j * along] = from[i * n + j];
        if (pairs) b.at[i * by + j * along] = from[i * n + j] * times[i * n + j];
      }
  }
  // Transposing makes scattered writes of what is read once: for transitions that vary, rows are read.
  void left(int64_t t, const T* x, const T* y, T* to) {
    if (!chain.varying) {
      rows.product(x, a.at, to);
      if (y != nullptr && pairs) add_product(y, to);
      return;
    }
    for (int64_t i = 0; i < rows.states; ++i) {
      to[i] = rows.dot(a.at + i * rows.width(), x);
      if (y != nullptr && pairs) to[i] += rows.dot(b.at + i * rows.width(), y);
    }
  }
  void add_product(const T* y, T* to) {
    rows.product(y, b.at, more.at);
    for (int64_t v = 0; v < rows.count(); ++v) store(to + v * L, load<V>(to + v * L) + load<V>(more.at + v * L));
  }

  void read(int64_t first, int64_t count) {
    residuals(rows, chain, io.filtered, io.shift, io.scale, first, count, w.at, p.at);
    if (io.smoothed_bar != nullptr) rows.pad(io.smoothed_bar + first * rows.states, count, s.at, T(0));
  }

  void forward() {
    const int64_t width = rows.width();
    if (!chain.varying && chain.steps > 1) transitions(1, false);
    for (int64_t first = 0; first < chain.steps; first += kSteps) {
      const int64_t count = chain.steps - first < kSteps ? chain.steps - first : kSteps;
      read(first, count);
      for (int64_t t = 0; t < count; ++t) {
        const T *now = p.at + (t + 1) * width, *weight = w.at + t * width, *along = s.at + t * width;
        T* to = dp.at + (t + 1) * width;
        if (first + t > 0) {
          if (chain.varying) transitions(first + t, false);
          rows.product(to - width, a.at, to);
          if (pairs) add_product(now - width, to);
        }
        for (int64_t v = 0; v < rows.count(); ++v)
          store(to + v * L, load<V>(to + v * L) * load<V>(weight + v * L) + load<V>(now + v * L) * load<V>(along + v * L));
        const T sum = r.at[first + t] = rows.sum(to);
        for (int64_t v = 0; v < rows.count(); ++v)
          store(to + v * L, load<V>(to + v * L) - load<V>(now + v * L) * sum);
      }
      rows.unpad(dp.at + width, count, io.log_likelihoods_bar + first * rows.states);
      std::memcpy(dp.at, dp.at + count * width, width * sizeof(T));
    }
  }

  void backward() {
    const int64_t width = rows.width();
    const T g = *io.evidence_bar;
    if (!chain.varying && chain.steps > 1) transitions(1, true);
    for (int64_t b = (chain.steps + kSteps - 1) / kSteps - 1; b >= 0; --b) {
      const int64_t first = b * kSteps;
      const int64_t count = chain.steps - first < kSteps ? chain.steps - first : kSteps;
      read(first, count);
      rows.pad_after(io.log_likelihoods_bar, first, count, dp.at);
      for (int64_t t = count - 1; t >= 0; --t) {
        const T *now = p.at + (t + 1) * width, *moved = dp.at + (t + 1) * width, *along = s.at + t * width;
        T *weight = w.at + t * width, *cotangent = q.at + t * width, *both = e.at + t * width;
        const T sum = r.at[first + t];
        // <b, p> = 1, hence <db, p> + <b, dp> = 0: but for rounding, which would add up
        const T lost = (io.scale[first + t] == 0 ? T(0) : T(1)) - rows.dot(bar.at, now);
        for (int64_t v = 0; v < rows.count(); ++v) store(bar.at + v * L, load<V>(bar.at + v * L) + lost);
        const T drift = rows.dot(dbar.at, now) + rows.dot(bar.at, moved);
        for (int64_t v = 0; v < rows.count(); ++v) {
          const V x = load<V>(bar.at + v * L), dx = load<V>(dbar.at + v * L) - drift, by = load<V>(weight + v * L);
          const V at = bounded<T>(x * by), by_sum = at * (load<V>(along + v * L) - sum);
          const V dq = bounded<T>(bounded<T>(dx * by) + bounded<T>(by_sum));
          store(cotangent + v * L, at);
          store(dbar.at + v * L, dq);
          store(both + v * L, bounded<T>(dq + bounded<T>(g * at)));
          store(weight + v * L, load<V>(moved + v * L) * x + load<V>(now + v * L) * dx + g * (load<V>(now + v * L) * x));
        }
        if (first + t == 0) break;
        if (chain.varying) transitions(first + t, false);
        std::memcpy(bar.at, dbar.at, width * sizeof(T));
        left(first + t, bar.at, cotangent, dbar.at);
        for (int64_t v = 0; v < rows.count(); ++v) store(dbar.at + v * L, bounded<T>(load<V>(dbar.at + v * L)));
        left(first + t, cotangent, nullptr, bar.at);
      }
      rows.unpad(w.at, count, io.log_likelihoods_bar + first * rows.states);
      outer(first, count);
    }
  }

  void outer(int64_t first, int64_t count) {
    const int64_t from = first == 0 ? 1 : 0, n = rows.states;
    if (!chain.varying) {
      add_outer(rows, p.at, e.at, from, count, total.at);
      add_outer(rows, dp.at, q.at, from, count, total.at);
      if (pairs) add_outer(rows, p.at, q.at, from, count, expected.at);
      return;
    }
    for (int64_t t = from; t < count; ++t) {
      const T *x = p.at + t * rows.width(), *dx = dp.at + t * rows.width();
      const T *y = q.at + t * rows.width(), *dy = e.at + t * rows.width();
      const T* times = pairs ? io.pairs_bar + matrix(first + t) : nullptr;
      T* to = io.transitions_bar + matrix(first + t);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j)
          to[i * n + j] = x[i] * dy[j] + (dx[i] + (pairs ? times[i * n + j] * x[i] : T(0))) * y[j];
    }
  }

  void run() {
    const int64_t n = rows.states;
    forward();
    backward();
    for (int64_t j = 0; j < n; ++j) io.initial_bar[j] = chain.steps > 0 ? e.at[j] : T(0);
    if (chain.varying) return;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double times = pairs ? io.pairs_bar[i * n + j] : T(0);
        const int64_t at = i * rows.width() + j;
        io.transitions_bar[i * n + j] = T(bounded<T>(total.at[at] + times * bounded<T>(expected.at[at])));
      }
  }
};

template <class T, int L, int NV>
void adjoint(const HmmChain<T>& chain, const HmmSmootherAdjoint<T>& io) {
  SmootherAdjoint<T, L, NV>(chain, io).run();
}

template <class T>
void adjoint(const HmmChain<T>& chain, const HmmSmootherAdjoint<T>& io) {
  VARAX_HMM_WIDTHS(adjoint, T, chain.states, chain, io);
}

}  // namespace

void hmm_smoother_adjoint_f32(HmmChain<float> chain, HmmSmootherAdjoint<float> io) { adjoint(chain, io); }
void hmm_smoother_adjoint_f64(HmmChain<double> chain, HmmSmootherAdjoint<double> io) { adjoint(chain, io); }

}  // namespace VARAX_ISA
}  // namespace varax
