// The filter of a discrete chain: u_t = (u_{t-1} A_t) * w_t, w_t = exp(log likelihood - shift).
//
// Probabilities, not logarithms: a step is multiplications alone. Rows are normalised a block later than
// they are computed, so that the chain of dependences from step to step has no sum and no division in it;
// within a block every fourth step is scaled by a power of two. A block in which a sum became too small
// for that (a likelihood that excludes what was predicted) is done again with the largest likelihood
// *among the states that can be reached* as shift, normalised in every step: exact as long as the
// predicted probability itself can be represented.
#include "hmm_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// A sum of many terms, compensated (Neumaier).
struct Sum {
  double value = 0, lost = 0;
  void add(double x) {
    const double next = value + x;
    if (next - next == 0) lost += __builtin_fabs(value) >= __builtin_fabs(x) ? (value - next) + x : (x - next) + value;
    value = next;
  }
  double total() const { return value + lost; }
};

template <class T, int L, int NV>
struct Filter {
  typedef typename Lanes<T, L>::V V;
  static constexpr T tiny = sizeof(T) == 4 ? T(1e-15) : T(1e-120);
  static constexpr T huge = sizeof(T) == 4 ? T(1e15) : T(1e120);

  const HmmChain<T>& chain;
  const HmmFiltered<T>& out;
  Rows<T, L, NV> rows;
  Scratch<T> matrix, w, u;
  T shift[kBlock], scale[kBlock], sum[kBlock + 1];
  Sum evidence;

  Filter(const HmmChain<T>& chain, const HmmFiltered<T>& out)
      : chain(chain), out(out), rows(chain.states), matrix(rows.width() * rows.width()),
        w(kBlock * rows.width()), u((kBlock + 1) * rows.width()) {
    if (!chain.varying && chain.steps > 1) rows.pad(chain.transitions, rows.states, matrix.at, T(0));
  }

  VARAX_INLINE const T* transitions(int64_t t) {
    if (!chain.varying) return matrix.at;
    const T* a = chain.transitions + (t - 1) * rows.states * rows.states;
    if (rows.states == rows.width()) return a;
    rows.pad(a, rows.states, matrix.at, T(0));
    return matrix.at;
  }

  VARAX_INLINE void predict(int64_t t, const T* from, T* to) {
    if (t == 0) {
      rows.pad(chain.initial, 1, to, T(0));
    } else {
      rows.product(from, transitions(t), to);
    }
  }

  V initial() {
    rows.pad(chain.initial, 1, u.at, T(0));
    return load<V>(u.at);
  }

  // Steps first, ..., first + count - 1; false if a sum left the range in which rows are exact.
  bool fast(int64_t first, int64_t count) {
    typedef typename Bits<T>::Int Int;
    bool fine = true;
    int64_t powers = 0;
    T by[kBlock];
    const int64_t width = rows.width(), vectors = rows.count();
    const T *constant = matrix.at, *weights = w.at;
    const bool varying = chain.varying;
    T *before = u.at, *sums = sum;
    sums[0] = 1;
    V last = load<V>(before);
    for (int64_t t = 0; t < count; ++t, before += width, weights += width) {
      T* after = before + width;
      if constexpr (NV == 1) {
        last = first + t == 0 ? initial() : rows.product(last, varying ? transitions(first + t) : constant);
      } else {
        predict(first + t, before, after);
      }
      T scaling = 1;
      if (t % 4 == 0 && t > 0) {
        Int bits;
        std::memcpy(&bits, sums + t, sizeof(T));
        const Int exponent = (bits >> Bits<T>::mantissa) - Bits<T>::bias;
        bits = (Bits<T>::bias - exponent) * (Int(1) << Bits<T>::mantissa);  // of a NaN, negative
        std::memcpy(&scaling, &bits, sizeof(T));
        powers += exponent;
      }
      by[t] = scaling;
      V all = {};
      for (int64_t v = 0; v < vectors; ++v) {
        V x = NV == 1 ? last : load<V>(after + v * L);
        x *= scaling * load<V>(weights + v * L);
        store(after + v * L, x);
        all += x;
        if constexpr (NV == 1) last = x;
      }
      const T total = sum_of<T, L>(all);
      sums[t + 1] = total;
      fine &= total > tiny && total < huge;
    }
    if (!fine) return false;
    double shifts = 0;
    for (int64_t t = 0; t < count; ++t) {
      shifts += shift[t];
      scale[t] = sum[t + 1] / (sum[t] * by[t]);
      const T inverse = 1 / sum[t + 1];
      T* row = u.at + (t + 1) * rows.width();
      for (int64_t v = 0; v < rows.count(); ++v) store(row + v * L, load<V>(row + v * L) * inverse);
    }
    evidence.add(shifts);
    evidence.add(__builtin_log(double(sum[count])) + powers * 0.69314718055994530942);
    return true;
  }

  void careful(int64_t first, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      T *before = u.at + t * rows.width(), *after = before + rows.width();
      predict(first + t, before, after);
      const T* logs = chain.log_likelihoods + (first + t) * rows.states;
      T top = -__builtin_inf();
      for (int64_t j = 0; j < rows.states; ++j)
        if (after[j] > 0 && logs[j] > top) top = logs[j];
      shift[t] = top - top == 0 ? top : T(0);
      T* likelihood = w.at + t * rows.width();
      rows.pad(logs, 1, likelihood, -__builtin_inf());
      for (int64_t v = 0; v < rows.count(); ++v) {
        const V power = exp_of<T, L>(load<V>(likelihood + v * L) - shift[t]);
        store(after + v * L, load<V>(after + v * L) * power);
      }
      scale[t] = rows.sum(after);
      const T inverse = scale[t] == 0 ? T(1) : 1 / scale[t];
      for (int64_t j = 0; j < rows.width(); ++j) after[j] *= inverse;
      evidence.add(shift[t]);
      evidence.add(__builtin_log(double(scale[t])));
    }
  }

  void run() {
    for (int64_t first = 0; first < chain.steps; first += kBlock) {
      const int64_t count = chain.steps - first < kBlock ? chain.steps - first : kBlock;
      rows.likelihoods(chain.log_likelihoods + first * rows.states, count, w.at, shift);
      if (!fast(first, count)) careful(first, count);
      rows.unpad(u.at + rows.width(), count, out.filtered + first * rows.states);
      if (out.shift != nullptr) {
        std::memcpy(out.shift + first, shift, count * sizeof(T));
        std::memcpy(out.scale + first, scale, count * sizeof(T));
      }
      std::memcpy(u.at, u.at + count * rows.width(), rows.width() * sizeof(T));
    }
    *out.evidence = T(evidence.total());
  }
};

template <class T, int L, int NV>
void filter(const HmmChain<T>& chain, const HmmFiltered<T>& out) {
  Filter<T, L, NV>(chain, out).run();
}

template <class T>
void filter(const HmmChain<T>& chain, const HmmFiltered<T>& out) {
  VARAX_HMM_WIDTHS(filter, T, chain.states, chain, out);
}

}  // namespace

void hmm_filter_f32(HmmChain<float> chain, HmmFiltered<float> out) { filter(chain, out); }
void hmm_filter_f64(HmmChain<double> chain, HmmFiltered<double> out) { filter(chain, out); }

}  // namespace VARAX_ISA
}  // namespace varax
