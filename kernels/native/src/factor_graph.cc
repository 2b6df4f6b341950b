// FFI handlers of message passing on pairwise factor graphs: the plan, and the loop over sweeps.
#include "factor_graph.h"

#include <cmath>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "handler.h"

namespace varax {
namespace {

constexpr int64_t kChunk = 32;  // groups that a thread takes at once

// Where the messages of a graph lie. `pairs` is [edges, 2], checked by the caller.
struct Layout {
  int64_t groups, rows, degree = 0;
  std::vector<int32_t> group, lane;     // of each variable
  std::vector<int64_t> first;           // of each group
  std::vector<int64_t> out;             // [edges, 2], where pairs[e, i] sends along edge e
  std::vector<int32_t> partner;

  Layout(int64_t variables, int64_t states, int64_t edges, const int32_t* pairs)
      : groups((variables + kGraphLanes - 1) / kGraphLanes), group(variables), lane(variables),
        first(groups + 1), out(2 * edges) {
    std::vector<int64_t> degrees(variables), order(variables);
    for (int64_t i = 0; i < 2 * edges; ++i) ++degrees[pairs[i]];
    for (int64_t d : degrees) degree = std::max(degree, d);
    std::vector<int64_t> start(degree + 2);
    for (int64_t d : degrees) ++start[d + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    for (int64_t v = 0; v < variables; ++v) order[start[degrees[v]]++] = v;
    for (int64_t i = 0; i < variables; ++i) {
      const int64_t g = i / kGraphLanes;
      group[order[i]] = g;
      lane[order[i]] = i % kGraphLanes;
      first[g + 1] = std::max(first[g + 1], degrees[order[i]]);
    }
    std::partial_sum(first.begin(), first.end(), first.begin());
    rows = first[groups];
    std::vector<int64_t> used(variables);
    for (int64_t i = 0; i < 2 * edges; ++i) {
      const int32_t v = pairs[i];
      out[i] = (first[group[v]] + used[v]++) * states * kGraphLanes + lane[v];
    }
    partner.resize(rows * kGraphLanes);
    for (int64_t i = 0; i < rows * kGraphLanes; ++i)
      partner[i] = rows * states * kGraphLanes + i % kGraphLanes;
    for (int64_t i = 0; i < 2 * edges; ++i) {
      const int64_t at = out[i] - lane[pairs[i]];
      partner[at / states + lane[pairs[i]]] = out[i ^ 1];
    }
  }
};

template <class T>
struct Aligned {
  explicit Aligned(int64_t count, T fill)
      : at(static_cast<T*>(::operator new((count + 1) * sizeof(T), std::align_val_t(64)))) {
    std::fill(at, at + count, fill);
  }
  ~Aligned() { ::operator delete(at, std::align_val_t(64)); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* at;
};

template <class T>
struct Options {
  int64_t iterations;
  T tolerance, damping;
  bool maximum;
};

// One graph; `spread(count, task)` runs the tasks of a sweep.
template <class T, class Spread>
void run(const Layout& layout, int64_t variables, int64_t states, int64_t edges, const int32_t* pairs,
         const T* unary, const T* tables, const Options<T>& options, const Spread& spread, T* messages,
         int32_t* iterations, T* residual) {
  const int64_t lanes = kGraphLanes, square = states * states;
  const GraphPlan plan{states, layout.rows, layout.first.data(), layout.partner.data()};
  auto exponentials = [](const T* logs, T* to, int64_t rows, int64_t width) {
    if constexpr (sizeof(T) == 4) {
      VARAX_PICK(graph_exponentials_f32)(logs, to, rows, width);
    } else {
      VARAX_PICK(graph_exponentials_f64)(logs, to, rows, width);
    }
  };
  Aligned<T> packed(layout.groups * states * lanes, 1), weights(layout.rows * square * lanes, 1);
  {
    std::vector<T> plain(std::max(variables * states, edges * square));
    exponentials(unary, plain.data(), variables, states);
    for (int64_t v = 0; v < variables; ++v)
      for (int64_t s = 0; s < states; ++s)
        packed.at[(layout.group[v] * states + s) * lanes + layout.lane[v]] = plain[v * states + s];
    exponentials(tables, plain.data(), edges, square);
    for (int64_t e = 0; e < edges; ++e) {
      const int32_t from = layout.lane[pairs[2 * e]], to = layout.lane[pairs[2 * e + 1]];
      T* there = weights.at + (layout.out[2 * e] - from) * states + from;
      T* back = weights.at + (layout.out[2 * e + 1] - to) * states + to;
      for (int64_t x = 0; x < states; ++x)
        for (int64_t y = 0; y < states; ++y) {
          there[(x * states + y) * lanes] = plain[e * square + x * states + y];
          back[(y * states + x) * lanes] = plain[e * square + x * states + y];
        }
    }
  }
  const T start = options.maximum ? T(1) : T(1) / T(states);
  const int64_t size = layout.rows * states * lanes;
  Aligned<T> one(size + states * lanes, start), two(size + states * lanes, start);
  std::fill(one.at + size, one.at + size + states * lanes, T(1));
  std::fill(two.at + size, two.at + size + states * lanes, T(1));
  const int64_t chunks = (layout.groups + kChunk - 1) / kChunk, each = graph_scratch(states, layout.degree);
  const int64_t apart = (each + 15) / 16 * 16;
  Aligned<T> scratch(chunks * apart, 0);
  std::vector<T> changes(chunks);
  T *before = one.at, *after = two.at;
  int64_t done = 0;
  T change = std::numeric_limits<T>::infinity();
  if (edges == 0) change = 0;
  while (done < options.iterations && change > options.tolerance) {
    spread(chunks, [&](int64_t c) {
      const GraphSweep<T> sweep{packed.at,       weights.at,      before, after, options.damping,
                                options.maximum, scratch.at + c * apart};
      const int64_t from = c * kChunk, to = std::min(from + kChunk, layout.groups);
      if constexpr (sizeof(T) == 4) {
        changes[c] = VARAX_PICK(graph_sweep_f32)(plan, sweep, from, to);
      } else {
        changes[c] = VARAX_PICK(graph_sweep_f64)(plan, sweep, from, to);
      }
    });
    change = 0;
    for (T x : changes) change = x > change || std::isnan(x) ? x : change;
    std::swap(before, after);
    ++done;
  }
  for (int64_t e = 0; e < edges; ++e)
    for (int64_t i = 0; i < 2; ++i)  // to variable i of the edge: what the other one sent
      for (int64_t s = 0; s < states; ++s)
        messages[(2 * e + i) * states + s] = before[layout.out[2 * e + 1 - i] + s * lanes];
  *iterations = static_cast<int32_t>(done);
  *residual = change;
}

ffi::Error wrong(const char* what) {
  return ffi::Error::InvalidArgument(std::string("factor_graph: ") + what);
}

template <ffi::DataType type>
ffi::Error messages(ffi::ThreadPool pool, int64_t batch, int64_t variables, int64_t states, int64_t edges,
                    int64_t limit, double tolerance, double damping, bool maximum, ffi::Buffer<type> unary,
                    ffi::Buffer<ffi::S32> pairs, ffi::Buffer<type> tables, ffi::ResultBuffer<type> out,
                    ffi::ResultBuffer<ffi::S32> iterations, ffi::ResultBuffer<type> residual) {
  typedef ffi::NativeType<type> T;
  const char* problem = nullptr;
  auto stride = [&](int64_t count, int64_t each) {
    if (count == each * batch) return batch == 1 ? int64_t(0) : each;
    if (count != each) problem = "a wrong number of elements in an operand";
    return int64_t(0);
  };
  const int64_t by_unary = stride(unary.element_count(), variables * states);
  const int64_t by_pairs = stride(pairs.element_count(), 2 * edges);
  const int64_t by_tables = stride(tables.element_count(), edges * states * states);
  if (int64_t(out->element_count()) != batch * 2 * edges * states ||
      int64_t(iterations->element_count()) != batch || int64_t(residual->element_count()) != batch)
    problem = "a wrong number of elements in a result";
  const int32_t* index = pairs.typed_data();
  for (int64_t i = 0; problem == nullptr && i < int64_t(pairs.element_count()); ++i) {
    if (index[i] < 0 || index[i] >= variables) problem = "a variable's index is out of range";
    if (i % 2 == 1 && index[i] == index[i - 1]) problem = "a factor has one variable twice";
  }
  if ((variables + 2 * edges + 1) * states * kGraphLanes > int64_t(1) << 31) problem = "the graph is too large";
  if (problem != nullptr) return wrong(problem);
  const Options<T> options{limit, T(tolerance), T(damping), maximum};
  auto one = [&](const Layout& layout, int64_t b, const auto& spread) {
    run<T>(layout, variables, states, edges, index + b * by_pairs, unary.typed_data() + b * by_unary,
           tables.typed_data() + b * by_tables, options, spread, out->typed_data() + b * 2 * edges * states,
           iterations->typed_data() + b, residual->typed_data() + b);
  };
  if (batch == 1) {
    const Layout layout(variables, states, edges, index);
    one(layout, 0, [&](int64_t count, const auto& task) { parallel(pool, count, task); });
  } else if (by_pairs == 0) {
    const Layout layout(variables, states, edges, index);
    parallel(pool, batch, [&](int64_t b) {
      one(layout, b, [](int64_t count, const auto& task) {
        for (int64_t i = 0; i < count; ++i) task(i);
      });
    });
  } else {
    parallel(pool, batch, [&](int64_t b) {
      const Layout layout(variables, states, edges, index + b * by_pairs);
      one(layout, b, [](int64_t count, const auto& task) {
        for (int64_t i = 0; i < count; ++i) task(i);
      });
    });
  }
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Attr<int64_t>("batch")
      .template Attr<int64_t>("variables")
      .template Attr<int64_t>("states")
      .template Attr<int64_t>("edges")
      .template Attr<int64_t>("iterations")
      .template Attr<double>("tolerance")
      .template Attr<double>("damping")
      .template Attr<bool>("maximum")
      .template Arg<ffi::Buffer<type>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<type>>()
      .template Ret<ffi::Buffer<type>>()
      .template Ret<ffi::Buffer<ffi::S32>>()
      .template Ret<ffi::Buffer<type>>();
}

}  // namespace

VARAX_HANDLER(varax_factor_graph_f32, messages<ffi::F32>, binding<ffi::F32>());
VARAX_HANDLER(varax_factor_graph_f64, messages<ffi::F64>, binding<ffi::F64>());

}  // namespace varax
