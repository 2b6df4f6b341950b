// Many chains of few states: the adjoint of the smoother as in hmm_smoother, one chain a lane.
#include "hmm_lanes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T, int K>
struct SmootherGroup : Group<T, K> {
  typedef Group<T, K> Base;
  typedef typename Base::V V;
  using Base::Base, Base::L;
  using Base::batch, Base::from, Base::count, Base::steps, Base::w, Base::p, Base::q, Base::more;
  using Base::fill, Base::fill_after, Base::residuals, Base::spill, Base::states, Base::transitions;

  // B = A * the cotangent of the expected transitions, beside A
  const V* weighted(int64_t t, const V* a, const T* pairs_bar, V* times, V* to) const {
    const int64_t square = states() * states();
    if (batch.first.varying) fill(times, pairs_bar + (t - 1) * square, (steps - 1) * square, square);
    if (batch.first.varying || t == 1)
      for (int64_t i = 0; i < square; ++i) to[i] = a[i] * times[i];
    return to;
  }

  void adjoint(const HmmSmootherAdjoint<T>& io) {
    const int64_t k = states(), square = k * k, blocks = (steps + kBlock - 1) / kBlock;
    const bool varying = batch.first.varying, pairs = io.pairs_bar != nullptr && steps > 1;
    const V zero = {};
    V scale[kBlock], g, *along = more.at;
    Scratch<V> dp((kBlock + 1) * k), bar(k), dbar(k), next(k), dnext(k), r(steps), sums(square), expected(square);
    Scratch<V> b(pairs ? square : 0), times(pairs ? square : 0);
    Scratch<double> total(square * L), plain(square * L);
    fill(&g, io.evidence_bar, 1, 1);
    if (pairs && !varying) {
      fill(times.at, io.pairs_bar, square, square);
      weighted(1, transitions(1), io.pairs_bar, times.at, b.at);
    }
    auto read = [&](int64_t first, int64_t rows) {
      residuals(io, first, rows, scale);
      if (io.smoothed_bar != nullptr) fill(along, io.smoothed_bar + first * k, steps * k, rows * k);
    };
    for (int64_t first = 0; first < steps; first += kBlock) {
      const int64_t rows = steps - first < kBlock ? steps - first : kBlock;
      read(first, rows);
      for (int64_t t = 0; t < rows; ++t) {
        const V *now = p.at + (t + 1) * k, *before = now - k, *s = along + t * k, *weight = w.at + t * k;
        V *to = dp.at + (t + 1) * k, *last = to - k, sum = zero;
        const bool start = first + t == 0;
        const V* a = start ? nullptr : transitions(first + t);
        if (pairs && varying && !start) weighted(first + t, a, io.pairs_bar, times.at, b.at);
        for (int64_t j = 0; j < k; ++j) {
          V moved = zero;
          if (!start) {
            for (int64_t i = 0; i < k; ++i) moved += last[i] * a[i * k + j];
            if (pairs)
              for (int64_t i = 0; i < k; ++i) moved += before[i] * b.at[i * k + j];
          }
          to[j] = moved * weight[j] + now[j] * s[j];
          sum += to[j];
        }
        for (int64_t j = 0; j < k; ++j) to[j] -= now[j] * sum;
        r.at[first + t] = sum;
      }
      spill(dp.at + k, io.log_likelihoods_bar + first * k, steps * k, rows * k);
      for (int64_t j = 0; j < k; ++j) dp.at[j] = dp.at[rows * k + j];
    }
    for (int64_t block = blocks - 1; block >= 0; --block) {
      const int64_t first = block * kBlock, rows = steps - first < kBlock ? steps - first : kBlock;
      read(first, rows);
      fill_after(dp.at, io.log_likelihoods_bar, first, rows);
      for (int64_t i = 0; i < square; ++i) sums.at[i] = expected.at[i] = zero;
      for (int64_t t = rows - 1; t >= 0; --t) {
        const V *now = p.at + (t + 1) * k, *moved = dp.at + (t + 1) * k, *s = along + t * k;
        const V *before = now - k, *last = moved - k, sum = r.at[first + t];
        V *weight = w.at + t * k, *cotangent = q.at + t * k;
        V lost = scale[t] == zero ? zero : zero + T(1), drift = zero;
        for (int64_t j = 0; j < k; ++j) lost -= bar.at[j] * now[j];
        for (int64_t j = 0; j < k; ++j) drift += dbar.at[j] * now[j] + (bar.at[j] + lost) * moved[j];
        for (int64_t j = 0; j < k; ++j) {
          const V x = bar.at[j] + lost, dx = dbar.at[j] - drift, at = bounded<T>(x * weight[j]);
          next.at[j] = at;
          dnext.at[j] = bounded<T>(bounded<T>(dx * weight[j]) + bounded<T>(at * (s[j] - sum)));
          cotangent[j] = bounded<T>(dnext.at[j] + bounded<T>(g * at));
          weight[j] = moved[j] * x + now[j] * dx + g * (now[j] * x);
        }
        if (first + t == 0) break;
        const V* a = transitions(first + t);
        if (pairs && varying) weighted(first + t, a, io.pairs_bar, times.at, b.at);
        for (int64_t i = 0; i < k; ++i) {
          V x = zero, dx = zero;
          for (int64_t j = 0; j < k; ++j) {
            const int64_t at = i * k + j;
            x += a[at] * next.at[j];
            dx += a[at] * dnext.at[j];
            if (pairs) dx += b.at[at] * next.at[j];
            const V added = before[i] * cotangent[j] + last[i] * next.at[j];
            if (varying) {
              sums.at[at] = pairs ? added + times.at[at] * before[i] * next.at[j] : added;
            } else {
              sums.at[at] += added;
              if (pairs) expected.at[at] += before[i] * next.at[j];
            }
          }
          bar.at[i] = x;
          dbar.at[i] = bounded<T>(dx);
        }
        if (varying) spill(sums.at, io.transitions_bar + (first + t - 1) * square, (steps - 1) * square, square);
      }
      for (int64_t i = 0; i < square && !varying; ++i)
        for (int l = 0; l < L; ++l) {
          total.at[i * L + l] += sums.at[i][l];
          plain.at[i * L + l] += expected.at[i][l];
        }
      spill(w.at, io.log_likelihoods_bar + first * k, steps * k, rows * k);
    }
    spill(q.at, io.initial_bar, k, k);
    if (varying) return;
    for (int l = 0; l < count; ++l)
      for (int64_t i = 0; i < square; ++i) {
        const double more = pairs ? times.at[i][l] * bounded<T>(plain.at[i * L + l]) : 0;
        io.transitions_bar[(from + l) * square + i] = T(bounded<T>(total.at[i * L + l] + more));
      }
  }
};

}  // namespace

void hmm_lanes_smoother_adjoint_f32(const HmmBatch<float>& batch, const HmmSmootherAdjoint<float>& io, int64_t from,
                                    int64_t count) {
  lanes<SmootherGroup>(batch, from, count, [&](auto& group) { group.adjoint(io); });
}
void hmm_lanes_smoother_adjoint_f64(const HmmBatch<double>& batch, const HmmSmootherAdjoint<double>& io, int64_t from,
                                    int64_t count) {
  lanes<SmootherGroup>(batch, from, count, [&](auto& group) { group.adjoint(io); });
}

}  // namespace VARAX_ISA
}  // namespace varax
