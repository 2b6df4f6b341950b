// Many chains of few states: one chain a lane, the filter and its adjoint as in hmm_filter and
// hmm_adjoint. Every step is normalised, since the lanes hide what that waits for.
#include "hmm_lanes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T, int K>
struct FilterGroup : Group<T, K> {
  typedef Group<T, K> Base;
  typedef typename Base::V V;
  typedef typename Base::I I;
  typedef typename Bits<T>::Int Int;
  using Base::Base, Base::L;
  using Base::batch, Base::from, Base::count, Base::steps, Base::matrix, Base::w, Base::p, Base::q, Base::more;
  using Base::chain, Base::fill, Base::fill_after, Base::logs, Base::residuals, Base::spill, Base::states,
      Base::transitions;
  static constexpr T tiny = sizeof(T) == 4 ? T(1e-15) : T(1e-120);
  static constexpr T huge = sizeof(T) == 4 ? T(1e15) : T(1e120);

  void filter(const HmmFiltered<T>& out) {
    const int64_t k = states();
    const V zero = {};
    V shift[kBlock], scale[kBlock];
    V* u = p.at;
    double evidence[L] = {};
    fill(u, batch.first.initial, batch.initial_stride, k);
    for (int64_t first = 0; first < steps; first += kBlock) {
      const int64_t rows = steps - first < kBlock ? steps - first : kBlock;
      logs(first, rows);
      for (int64_t t = 0; t < rows; ++t) {
        V* x = w.at + t * k;
        V top = x[0];
        for (int64_t j = 1; j < k; ++j) top = x[j] > top ? x[j] : top;
        top = top - top == zero ? top : zero;
        shift[t] = top;
        for (int64_t j = 0; j < k; ++j) x[j] = exp_of<T, L>(x[j] - top);
      }
      V fractions = zero + T(1);
      I exponents = {};
      for (int64_t t = 0; t < rows; ++t) {
        V* row = p.at + (t + 1) * k;
        const V *before = row - k, *likelihood = w.at + t * k;
        const bool start = first + t == 0;
        const V* a = start ? nullptr : transitions(first + t);
        V sum = zero;
        for (int64_t j = 0; j < k; ++j) {
          V predicted = zero;
          if (start) {
            predicted = before[j];
          } else {
            for (int64_t i = 0; i < k; ++i) predicted += before[i] * a[i * k + j];
          }
          row[j] = predicted * likelihood[j];
          sum += row[j];
          more.at[j] = predicted;
        }
        const I fine = (sum > zero + tiny) & (sum < zero + huge);
        bool all = true;
        for (int l = 0; l < L; ++l) all &= fine[l] != 0;
        V counted = sum;
        if (!all) {
          for (int l = 0; l < L; ++l) {
            if (fine[l]) continue;
            careful(first + t, l, row, shift + t, &sum);
            evidence[l] += __builtin_log(double(sum[l]));
            counted[l] = 1;
          }
        }
        scale[t] = sum;
        const V inverse = T(1) / (sum == zero ? zero + T(1) : sum);
        for (int64_t j = 0; j < k; ++j) row[j] *= inverse;
        const I bits = (I)counted;
        exponents += (bits >> Bits<T>::mantissa) - Bits<T>::bias;
        const Int fraction = (Int(1) << Bits<T>::mantissa) - 1, one = Int(Bits<T>::bias) << Bits<T>::mantissa;
        fractions *= (V)((bits & fraction) | one);
      }
      for (int l = 0; l < L; ++l) {
        double shifts = 0;
        for (int64_t t = 0; t < rows; ++t) shifts += shift[t][l];
        evidence[l] += shifts + (__builtin_log(double(fractions[l])) + exponents[l] * 0.69314718055994530942);
      }
      spill(p.at + k, out.filtered + first * k, steps * k, rows * k);
      if (out.shift != nullptr) {
        spill(shift, out.shift + first, steps, rows);
        spill(scale, out.scale + first, steps, rows);
      }
      for (int64_t j = 0; j < k; ++j) u[j] = p.at[rows * k + j];
    }
    for (int l = 0; l < count; ++l) out.evidence[from + l] = T(evidence[l]);
  }

  // A step of one lane with the largest likelihood among the states that can be reached as its shift.
  void careful(int64_t t, int l, V* row, V* shift, V* sum) const {
    const int64_t k = states();
    const T* x = batch.first.log_likelihoods + chain(l) * batch.log_likelihoods_stride + t * k;
    T top = -__builtin_inf();
    for (int64_t j = 0; j < k; ++j)
      if (more.at[j][l] > 0 && x[j] > top) top = x[j];
    top = top - top == 0 ? top : T(0);
    T total = 0;
    for (int64_t j = 0; j < k; ++j) {
      const V power = exp_of<T, L>(V{} + (x[j] - top));
      row[j][l] = more.at[j][l] * power[0];
      total += row[j][l];
    }
    (*shift)[l] = top;
    (*sum)[l] = total;
  }

  void adjoint(const HmmAdjoint<T>& io) {
    const int64_t k = states(), square = k * k;
    const bool varying = batch.first.varying;
    const V zero = {};
    V scale[kBlock], g;
    Scratch<V> bar(k), sums(square);
    Scratch<double> total(square * L);
    fill(&g, io.evidence_bar, 1, 1);
    const V* filtered_bar = nullptr;
    if (steps > 0 && io.filtered_bar != nullptr) fill(bar.at, io.filtered_bar + (steps - 1) * k, steps * k, k);
    const int64_t blocks = (steps + kBlock - 1) / kBlock;
    for (int64_t b = blocks - 1; b >= 0; --b) {
      const int64_t first = b * kBlock, rows = steps - first < kBlock ? steps - first : kBlock;
      residuals(io, first, rows, scale);
      if (io.filtered_bar != nullptr) {  // row t: that of step first + t - 1
        fill_after(more.at, io.filtered_bar, first, rows - 1);
        filtered_bar = more.at;
      }
      for (int64_t i = 0; i < square; ++i) sums.at[i] = zero;
      for (int64_t t = rows - 1; t >= 0; --t) {
        const V *now = p.at + (t + 1) * k, *last = now - k;
        V *x = w.at + t * k, *cotangent = q.at + t * k;
        V dot = zero;
        for (int64_t j = 0; j < k; ++j) dot += bar.at[j] * now[j];
        const V add = (scale[t] == zero ? zero : g) - dot;
        for (int64_t j = 0; j < k; ++j) {
          const V a = bar.at[j] + add;
          cotangent[j] = bounded<T>(a * x[j]);
          x[j] = a * now[j];
        }
        if (first + t == 0) break;
        const V* a = transitions(first + t);
        for (int64_t i = 0; i < k; ++i) {
          V next = filtered_bar == nullptr ? zero : filtered_bar[t * k + i];
          for (int64_t j = 0; j < k; ++j) {
            next += a[i * k + j] * cotangent[j];
            if (varying) {
              sums.at[i * k + j] = last[i] * cotangent[j];
            } else {
              sums.at[i * k + j] += last[i] * cotangent[j];
            }
          }
          bar.at[i] = next;
        }
        if (varying)
          spill(sums.at, io.transitions_bar + (first + t - 1) * square, (steps - 1) * square, square);
      }
      if (!varying)
        for (int64_t i = 0; i < square; ++i)
          for (int l = 0; l < L; ++l) total.at[i * L + l] += sums.at[i][l];
      spill(w.at, io.log_likelihoods_bar + first * k, steps * k, rows * k);
    }
    spill(q.at, io.initial_bar, k, k);
    if (varying) return;
    for (int l = 0; l < count; ++l)
      for (int64_t i = 0; i < square; ++i) io.transitions_bar[(from + l) * square + i] = T(bounded<T>(total.at[i * L + l]));
  }
};

}  // namespace

void hmm_lanes_filter_f32(const HmmBatch<float>& batch, const HmmFiltered<float>& out, int64_t from, int64_t count) {
  lanes<FilterGroup>(batch, from, count, [&](auto& group) { group.filter(out); });
}
void hmm_lanes_filter_f64(const HmmBatch<double>& batch, const HmmFiltered<double>& out, int64_t from, int64_t count) {
  lanes<FilterGroup>(batch, from, count, [&](auto& group) { group.filter(out); });
}
void hmm_lanes_adjoint_f32(const HmmBatch<float>& batch, const HmmAdjoint<float>& io, int64_t from, int64_t count) {
  lanes<FilterGroup>(batch, from, count, [&](auto& group) { group.adjoint(io); });
}
void hmm_lanes_adjoint_f64(const HmmBatch<double>& batch, const HmmAdjoint<double>& io, int64_t from, int64_t count) {
  lanes<FilterGroup>(batch, from, count, [&](auto& group) { group.adjoint(io); });
}

}  // namespace VARAX_ISA
}  // namespace varax
