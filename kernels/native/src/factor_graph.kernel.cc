// One sweep of sum- or max-product over a pairwise factor graph, in probabilities.
//
// What a variable sends along edge k is its unary times the messages that came along all other edges,
// through the table of the edge. Products "all but one" are prefixes times suffixes, so nothing is divided
// and zeros are exact; each running product is scaled by a power of two, so none vanishes.
#include "factor_graph.h"
#include "vectors.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T, int K>
struct Sweep {
  static constexpr int L = kVectorBytes / int(sizeof(T)) < kGraphLanes ? kVectorBytes / int(sizeof(T)) : kGraphLanes;
  typedef typename Lanes<T, L>::V V;
  typedef typename Lanes<T, L>::I I;

  static VARAX_INLINE V larger(V a, V x) { return ((x > a) | (x != x)) ? x : a; }  // a NaN stays
  static VARAX_INLINE void rescale(V* x, int64_t states) {
    V most = x[0];
    for (int64_t s = 1; s < states; ++s) most = x[s] > most ? x[s] : most;
    typedef typename Bits<T>::Int Int;
    constexpr Int exponent = Int((sizeof(T) == 4 ? 0xFFll : 0x7FFll) << Bits<T>::mantissa);
    constexpr Int twice = Int(2 * Int(Bits<T>::bias)) << Bits<T>::mantissa;
    const V by = (V)(twice - ((I)most & exponent));
    for (int64_t s = 0; s < states; ++s) x[s] *= by;
  }

  static T run(const GraphPlan& plan, const GraphSweep<T>& sweep, int64_t from, int64_t to) {
    const int64_t states = K ? K : plan.states;
    const T *unary = sweep.unary, *tables = sweep.tables, *before = sweep.before;
    T* after = sweep.after;
    const bool maximum = sweep.maximum;
    const T damping = sweep.damping;
    const V zero = {};
    V largest = {};
    for (int64_t g = from; g < to; ++g) {
      const int64_t first = plan.first[g], degree = plan.first[g + 1] - first;
      for (int lane = 0; lane < kGraphLanes; lane += L) {
        V* incoming = reinterpret_cast<V*>(sweep.scratch);
        V *prefix = incoming + degree * states, *suffix = prefix + (degree + 1) * states;
        V *cavity = suffix + states, *message = cavity + states;
        for (int64_t s = 0; s < states; ++s) prefix[s] = load<V>(unary + (g * states + s) * kGraphLanes + lane);
        for (int64_t k = 0; k < degree; ++k) {
          const int32_t* at = plan.partner + (first + k) * kGraphLanes + lane;
          V *next = prefix + states, *in = incoming + k * states;
          for (int64_t s = 0; s < states; ++s) {
            T part[L];
            for (int l = 0; l < L; ++l) part[l] = before[at[l] + s * kGraphLanes];
            in[s] = load<V>(part);
            next[s] = prefix[s] * in[s];
          }
          rescale(next, states);
          prefix = next;
        }
        for (int64_t s = 0; s < states; ++s) suffix[s] = zero + T(1);
        for (int64_t k = degree - 1; k >= 0; --k) {
          prefix -= states;
          const V* in = incoming + k * states;
          for (int64_t s = 0; s < states; ++s) cavity[s] = prefix[s] * suffix[s];
          const T* table = tables + (first + k) * states * states * kGraphLanes + lane;
          V norm = zero;
          for (int64_t y = 0; y < states; ++y) {
            V sum = zero;
            for (int64_t x = 0; x < states; ++x) {
              const V term = cavity[x] * load<V>(table + (x * states + y) * kGraphLanes);
              sum = maximum ? larger(sum, term) : sum + term;
            }
            message[y] = sum;
            norm = maximum ? larger(norm, sum) : norm + sum;
          }
          const V inverse = T(1) / (norm == zero ? zero + T(1) : norm);
          if (sweep.joint != nullptr) {
            T* joint = sweep.joint + (table - tables);
            for (int64_t x = 0; x < states; ++x)
              for (int64_t y = 0; y < states; ++y) {
                const int64_t at = (x * states + y) * kGraphLanes;
                store(joint + at, cavity[x] * load<V>(table + at) * inverse);
              }
          }
          const int64_t own = (first + k) * states * kGraphLanes + lane;
          for (int64_t y = 0; y < states; ++y) {
            const V old = load<V>(before + own + y * kGraphLanes);
            V now = message[y] * inverse;
            now += damping * (old - now);
            const V change = now > old ? now - old : old - now;
            largest = larger(largest, change);
            store(after + own + y * kGraphLanes, now);
          }
          for (int64_t s = 0; s < states; ++s) suffix[s] *= in[s];
          rescale(suffix, states);
        }
      }
    }
    T most = 0;
    for (int l = 0; l < L; ++l) most = largest[l] > most || largest[l] != largest[l] ? largest[l] : most;
    return most;
  }
};

// A step of the damped iteration for a linear equation.
template <class T, int K, bool transposed>
struct Solve {
  static constexpr int L = Sweep<T, K>::L;
  typedef typename Lanes<T, L>::V V;

  static T run(const GraphPlan& plan, const GraphSolve<T>& solve, int64_t from, int64_t to) {
    const int64_t states = K ? K : plan.states;
    const T rate = 1 - solve.damping;
    const V zero = {};
    V largest = {};
    for (int64_t g = from; g < to; ++g) {
      const int64_t first = plan.first[g], degree = plan.first[g + 1] - first;
      for (int lane = 0; lane < kGraphLanes; lane += L) {
        V *part = reinterpret_cast<V*>(solve.scratch), *sum = part + degree * states, *in = sum + states;
        for (int64_t s = 0; s < states; ++s) sum[s] = zero;
        for (int64_t k = 0; k < degree; ++k) {
          const int32_t* at = plan.partner + (first + k) * kGraphLanes + lane;
          const int64_t row = (first + k) * states, own = row * kGraphLanes + lane;
          V *to_sum = part + k * states, *into = transposed ? in : to_sum;
          V mean = zero;
          for (int64_t s = 0; s < states; ++s) {
            T other[L];
            for (int l = 0; l < L; ++l) other[l] = solve.before[at[l] + s * kGraphLanes];
            into[s] = load<V>(other);
            if (transposed) mean += into[s] * load<V>(solve.sent + own + s * kGraphLanes);
          }
          if (transposed) {
            const T* joint = solve.joint + row * states * kGraphLanes + lane;
            for (int64_t x = 0; x < states; ++x) {
              V all = zero;
              for (int64_t y = 0; y < states; ++y)
                all += load<V>(joint + (x * states + y) * kGraphLanes) * (in[y] - mean);
              to_sum[x] = all;
            }
          }
          for (int64_t s = 0; s < states; ++s) sum[s] += to_sum[s];
        }
        for (int64_t k = 0; k < degree; ++k) {
          const int64_t row = (first + k) * states, own = row * kGraphLanes + lane;
          const T* joint = solve.joint + row * states * kGraphLanes + lane;
          const V* mine = part + k * states;
          V total = zero;
          if (!transposed) {
            for (int64_t y = 0; y < states; ++y) in[y] = zero;
            for (int64_t x = 0; x < states; ++x) {
              const V rest = sum[x] - mine[x];
              for (int64_t y = 0; y < states; ++y) in[y] += load<V>(joint + (x * states + y) * kGraphLanes) * rest;
            }
            for (int64_t y = 0; y < states; ++y) total += in[y];
          }
          for (int64_t s = 0; s < states; ++s) {
            const int64_t at = own + s * kGraphLanes;
            const V inverse = load<V>(solve.inverse + at), x = load<V>(solve.x + at);
            const V image = transposed ? inverse * (sum[s] - mine[s]) : in[s] - load<V>(solve.sent + at) * total;
            const V step = rate * (image - x - load<V>(solve.given + at)), next = x + step;
            largest = Sweep<T, K>::larger(largest, step > zero ? step : -step);
            store(solve.x + at, next);
            store(solve.after + at, transposed ? next : next * inverse);
          }
        }
      }
    }
    T most = 0;
    for (int l = 0; l < L; ++l) most = largest[l] > most || largest[l] != largest[l] ? largest[l] : most;
    return most;
  }
};

template <class T, bool transposed>
T solve(const GraphPlan& plan, const GraphSolve<T>& given, int64_t from, int64_t to) {
  switch (plan.states) {
    case 2: return Solve<T, 2, transposed>::run(plan, given, from, to);
    case 3: return Solve<T, 3, transposed>::run(plan, given, from, to);
    default: return Solve<T, 0, transposed>::run(plan, given, from, to);
  }
}

template <class T>
T solve(const GraphPlan& plan, const GraphSolve<T>& given, int64_t from, int64_t to) {
  return given.transposed ? solve<T, true>(plan, given, from, to) : solve<T, false>(plan, given, from, to);
}

template <class T>
T sweep(const GraphPlan& plan, const GraphSweep<T>& given, int64_t from, int64_t to) {
  switch (plan.states) {
    case 2: return Sweep<T, 2>::run(plan, given, from, to);
    case 3: return Sweep<T, 3>::run(plan, given, from, to);
    case 4: return Sweep<T, 4>::run(plan, given, from, to);
    default: return Sweep<T, 0>::run(plan, given, from, to);
  }
}

template <class T>
void exponentials(const T* logs, T* to, int64_t rows, int64_t width) {
  constexpr int L = kVectorBytes / int(sizeof(T));
  typedef typename Lanes<T, L>::V V;
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = logs + r * width;
    T top = -__builtin_inf();
    for (int64_t i = 0; i < width; ++i) top = from[i] > top ? from[i] : top;
    top = top - top == 0 ? top : T(0);
    for (int64_t i = 0; i < width; ++i) to[r * width + i] = from[i] - top;
  }
  int64_t i = 0;
  for (; i + L <= rows * width; i += L) store(to + i, exp_of<T, L>(load<V>(to + i)));
  if (i < rows * width) {
    V rest = {};
    std::memcpy(&rest, to + i, (rows * width - i) * sizeof(T));
    rest = exp_of<T, L>(rest);
    std::memcpy(to + i, &rest, (rows * width - i) * sizeof(T));
  }
}

}  // namespace

float graph_sweep_f32(const GraphPlan& plan, const GraphSweep<float>& given, int64_t from, int64_t to) {
  return sweep(plan, given, from, to);
}
double graph_sweep_f64(const GraphPlan& plan, const GraphSweep<double>& given, int64_t from, int64_t to) {
  return sweep(plan, given, from, to);
}
float graph_solve_f32(const GraphPlan& plan, const GraphSolve<float>& given, int64_t from, int64_t to) {
  return solve(plan, given, from, to);
}
double graph_solve_f64(const GraphPlan& plan, const GraphSolve<double>& given, int64_t from, int64_t to) {
  return solve(plan, given, from, to);
}
void graph_exponentials_f32(const float* logs, float* to, int64_t rows, int64_t width) {
  exponentials(logs, to, rows, width);
}
void graph_exponentials_f64(const double* logs, double* to, int64_t rows, int64_t width) {
  exponentials(logs, to, rows, width);
}

}  // namespace VARAX_ISA
}  // namespace varax
