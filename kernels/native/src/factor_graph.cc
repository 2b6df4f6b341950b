// FFI handlers of message passing on pairwise factor graphs: the plan, and the loop over sweeps.
#include "graph_layout.h"

namespace varax {
namespace {

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
  const int64_t lanes = kGraphLanes;
  const GraphPlan plan{states, layout.rows, layout.first.data(), layout.partner.data()};
  const GraphWeights<T> weights(layout, variables, states, edges, pairs, unary, tables);
  const auto update = VARAX_PICK_OF(T, graph_sweep);
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
      const GraphSweep<T> sweep{weights.unary.at, weights.tables.at, before, after, options.damping,
                                options.maximum,  scratch.at + c * apart, nullptr};
      const int64_t from = c * kChunk, to = std::min(from + kChunk, layout.groups);
      changes[c] = update(plan, sweep, from, to);
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

template <ffi::DataType type>
ffi::Error messages(ffi::ThreadPool pool, int64_t batch, int64_t variables, int64_t states, int64_t edges,
                    int64_t limit, double tolerance, double damping, bool maximum, ffi::Buffer<type> unary,
                    ffi::Buffer<ffi::S32> pairs, ffi::Buffer<type> tables, ffi::ResultBuffer<type> out,
                    ffi::ResultBuffer<ffi::S32> iterations, ffi::ResultBuffer<type> residual) {
  typedef ffi::NativeType<type> T;
  Graphs graphs(batch, variables, states, edges, pairs);
  const int64_t by_unary = graphs.stride(unary.element_count(), variables * states);
  const int64_t by_tables = graphs.stride(tables.element_count(), edges * states * states);
  if (int64_t(out->element_count()) != batch * 2 * edges * states ||
      int64_t(iterations->element_count()) != batch || int64_t(residual->element_count()) != batch)
    graphs.problem = "a wrong number of elements in a result";
  if (graphs.problem != nullptr) return wrong_graph(graphs.problem);
  const Options<T> options{limit, T(tolerance), T(damping), maximum};
  graphs.each(pool, [&](const Layout& layout, int64_t b, const auto& spread) {
    run<T>(layout, variables, states, edges, graphs.pairs(b), unary.typed_data() + b * by_unary,
           tables.typed_data() + b * by_tables, options, spread, out->typed_data() + b * 2 * edges * states,
           iterations->typed_data() + b, residual->typed_data() + b);
  });
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto binding() {
  return graph_binding<type>("maximum")
      .template Ret<ffi::Buffer<type>>()
      .template Ret<ffi::Buffer<ffi::S32>>()
      .template Ret<ffi::Buffer<type>>();
}

}  // namespace

VARAX_HANDLER(varax_factor_graph_f32, messages<ffi::F32>, binding<ffi::F32>());
VARAX_HANDLER(varax_factor_graph_f64, messages<ffi::F64>, binding<ffi::F64>());

}  // namespace varax
