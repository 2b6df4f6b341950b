// The most likely path of a discrete chain, and paths drawn backwards from its posterior.
#include "hmm_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T>
T finite(T x) {
  return x - x == 0 ? x : T(0);
}

// delta_t = max_i(delta_{t-1,i} + a_ij) + l_tj, less its maximum. Only sums and maxima, each in the order
// of the definition: the bits are the same. The path is read off the deltas backwards, which costs
// `states` a step where remembering every argmax would cost states^2. Of equals the first is taken.
template <class T, int L, int NV>
void viterbi(const HmmChain<T>& chain, int32_t* path, T* score) {
  typedef typename Lanes<T, L>::V V;
  const Rows<T, L, NV> rows(chain.states);
  const int64_t width = rows.width(), states = rows.states, steps = chain.steps;
  const T none = -__builtin_inf();
  Scratch<T> deltas((steps + 1) * width), matrix(width * width), turned(width * width), sums(width);
  for (int64_t i = 0; i < width * width; ++i) matrix.at[i] = turned.at[i] = none;
  if (!chain.varying && steps > 1) {
    rows.pad(chain.transitions, states, matrix.at, none);
    rows.transpose(chain.transitions, turned.at);
  }
  auto transitions = [&](int64_t t) { return chain.transitions + (chain.varying ? (t - 1) * states * states : 0); };
  for (int64_t t = 0; t < steps; ++t) {
    T* to = deltas.at + t * width;
    if (t == 0) {
      rows.pad(chain.initial, 1, to, none);
    } else {
      if (chain.varying) rows.pad(transitions(t), states, matrix.at, none);
      const T *from = to - width, *a = matrix.at;
      for (int64_t v = 0; v < rows.count(); ++v) {
        V best = load<V>(a + v * L) + from[0];
        for (int64_t i = 1; i < states; ++i) {
          const V x = load<V>(a + i * width + v * L) + from[i];
          best = x > best ? x : best;
        }
        store(to + v * L, best);
      }
    }
    const T* logs = chain.log_likelihoods + t * states;
    T top = none;
    for (int64_t j = 0; j < states; ++j) {
      to[j] += logs[j];
      top = to[j] > top ? to[j] : top;
    }
    top = finite(top);
    for (int64_t j = 0; j < states; ++j) to[j] -= top;
  }
  double total = 0, lost = 0;
  auto add = [&](double x) {
    const double next = total + x;
    if (next - next == 0) lost += (total - next) + x;
    total = next;
  };
  int32_t next = 0;
  for (int64_t t = steps - 1; t >= 0; --t) {
    const T* delta = deltas.at + t * width;
    const T* column = nullptr;
    if (t + 1 < steps) {
      column = chain.varying ? transitions(t + 1) + next : turned.at + next * width;
      const int64_t stride = chain.varying ? states : 1;
      for (int64_t i = 0; i < states; ++i) sums.at[i] = delta[i] + column[i * stride];
      delta = sums.at;
    }
    int32_t best = 0;
    for (int32_t i = 1; i < states; ++i) best = delta[i] > delta[best] ? i : best;
    if (t + 1 < steps) add(transitions(t + 1)[best * states + next]);
    add(chain.log_likelihoods[t * states + best]);
    path[t] = next = best;
  }
  if (steps > 0) add(chain.initial[next]);
  *score = T(total + lost);
}

template <class T>
bool any_nan(const T* x, int64_t count) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= x[i] != x[i];
  return found != 0;
}

template <class T>
void most_likely(const HmmChain<T>& chain, int32_t* path, T* score) {
  const int64_t steps = chain.steps, states = chain.states;
  const int64_t matrices = chain.varying ? (steps > 0 ? steps - 1 : 0) : 1;
  if (any_nan(chain.initial, states) || any_nan(chain.transitions, matrices * states * states) ||
      any_nan(chain.log_likelihoods, steps * states)) {
    for (int64_t t = 0; t < steps; ++t) path[t] = 0;
    *score = __builtin_nan("");
    return;
  }
  VARAX_HMM_WIDTHS(viterbi, T, states, chain, path, score);
}

// z_t given z_{t+1} has weights filtered_ti a_i,z: the first whose cumulative weight is above u_t times
// the total, and in any case one of positive weight if there is one.
template <class T>
void draw(const HmmChain<T>& chain, const T* filtered, const T* uniforms, int32_t* path) {
  const int64_t steps = chain.steps, states = chain.states;
  Scratch<T> sums(states), turned(chain.varying ? 0 : states * states);
  if (!chain.varying && steps > 1)
    for (int64_t i = 0; i < states; ++i)
      for (int64_t j = 0; j < states; ++j) turned.at[j * states + i] = chain.transitions[i * states + j];
  int32_t next = 0;
  for (int64_t t = steps - 1; t >= 0; --t) {
    const T* p = filtered + t * states;
    const T* column = chain.varying ? chain.transitions + t * states * states + next : turned.at + next * states;
    const int64_t stride = chain.varying ? states : 1;
    T total = 0;
    int32_t last = 0;
    for (int32_t i = 0; i < states; ++i) {
      const T weight = t + 1 < steps ? p[i] * column[i * stride] : p[i];
      total += weight;
      sums.at[i] = total;
      if (weight > 0) last = i;
    }
    const T target = uniforms[t] * total;
    int32_t chosen = last;
    for (int32_t i = static_cast<int32_t>(states) - 1; i >= 0; --i) chosen = sums.at[i] > target ? i : chosen;
    path[t] = next = chosen;
  }
}

}  // namespace

void hmm_viterbi_f32(HmmChain<float> chain, int32_t* path, float* score) { most_likely(chain, path, score); }
void hmm_viterbi_f64(HmmChain<double> chain, int32_t* path, double* score) { most_likely(chain, path, score); }
void hmm_draw_f32(HmmChain<float> chain, const float* p, const float* u, int32_t* path) { draw(chain, p, u, path); }
void hmm_draw_f64(HmmChain<double> chain, const double* p, const double* u, int32_t* path) {
  draw(chain, p, u, path);
}

}  // namespace VARAX_ISA
}  // namespace varax
