// FFI handlers of the linear equations that derivatives of fixed points of message passing ask for.
#include "graph_layout.h"

namespace varax {
namespace {

template <class T>
struct Options {
  int64_t iterations;
  T tolerance, damping;
  bool transposed;
};

// What lies at `from` by edges, [edges, 2, states], to where messages go out (or come in), or back.
template <class T, class Move>
void by_edges(const Layout& layout, int64_t states, int64_t edges, bool incoming, const Move& move) {
  for (int64_t e = 0; e < edges; ++e)
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t s = 0; s < states; ++s)
        move(layout.out[2 * e + (incoming ? i : 1 - i)] + s * kGraphLanes, (2 * e + i) * states + s);
}

// One graph; `spread(count, task)` runs the tasks of a sweep.
template <class T, class Spread>
void run(const Layout& layout, int64_t variables, int64_t states, int64_t edges, const int32_t* pairs,
         const T* unary, const T* tables, const T* messages, const T* given, const Options<T>& options,
         const Spread& spread, T* to) {
  const GraphPlan plan{states, layout.rows, layout.first.data(), layout.partner.data()};
  const GraphWeights<T> weights(layout, variables, states, edges, pairs, unary, tables);
  const int64_t row = states * kGraphLanes, size = layout.rows * row;
  const int64_t chunks = (layout.groups + kChunk - 1) / kChunk, each = graph_scratch(states, layout.degree);
  const int64_t apart = (each + 15) / 16 * 16;
  Aligned<T> scratch(chunks * apart, 0), joint(size * states, 0), sent(size + row, 0), before(size + row, 1);
  Aligned<T> inverse(size, 0), b(size, 0), x(size, 0), one(size + row, 0), two(size + row, 0);
  const bool incoming = options.transposed;
  by_edges<T>(layout, states, edges, false, [&](int64_t there, int64_t here) { before.at[there] = messages[here]; });
  by_edges<T>(layout, states, edges, incoming, [&](int64_t there, int64_t here) {
    inverse.at[there] = messages[here] == 0 ? T(0) : 1 / messages[here];
    b.at[there] = given[here];
  });
  T most = 0;
  for (int64_t i = 0; i < 2 * edges * states; ++i) {
    const T now = std::abs(given[i]);
    most = now > most || std::isnan(now) ? now : most;
  }
  const auto in_chunks = [&](const auto& task) {
    spread(chunks, [&](int64_t c) { task(c, c * kChunk, std::min((c + 1) * kChunk, layout.groups)); });
  };
  const auto sweep = VARAX_PICK_OF(T, graph_sweep);
  in_chunks([&](int64_t c, int64_t from, int64_t to) {
    sweep(plan, {weights.unary.at, weights.tables.at, before.at, sent.at, T(0), false, scratch.at + c * apart, joint.at},
          from, to);
  });
  const auto step = VARAX_PICK_OF(T, graph_solve);
  std::vector<T> changes(chunks);
  T *old = one.at, *now = two.at, change = std::numeric_limits<T>::infinity();
  for (int64_t done = 0; done < options.iterations && change > options.tolerance * most; ++done) {
    in_chunks([&](int64_t c, int64_t from, int64_t to) {
      changes[c] = step(plan, {joint.at, sent.at, inverse.at, b.at, x.at, old, now, options.damping,
                               options.transposed, scratch.at + c * apart}, from, to);
    });
    change = 0;
    for (T c : changes) change = c > change || std::isnan(c) ? c : change;
    std::swap(old, now);
  }
  by_edges<T>(layout, states, edges, incoming, [&](int64_t there, int64_t here) { to[here] = x.at[there]; });
}

template <ffi::DataType type>
ffi::Error solve(ffi::ThreadPool pool, int64_t batch, int64_t variables, int64_t states, int64_t edges,
                 int64_t limit, double tolerance, double damping, bool transposed, ffi::Buffer<type> unary,
                 ffi::Buffer<ffi::S32> pairs, ffi::Buffer<type> tables, ffi::Buffer<type> messages,
                 ffi::Buffer<type> given, ffi::ResultBuffer<type> out) {
  typedef ffi::NativeType<type> T;
  Graphs graphs(batch, variables, states, edges, pairs);
  const int64_t all = 2 * edges * states;
  const int64_t by_unary = graphs.stride(unary.element_count(), variables * states);
  const int64_t by_tables = graphs.stride(tables.element_count(), edges * states * states);
  const int64_t by_messages = graphs.stride(messages.element_count(), all);
  const int64_t by_given = graphs.stride(given.element_count(), all);
  if (int64_t(out->element_count()) != batch * all) graphs.problem = "a wrong number of elements in a result";
  if (graphs.problem != nullptr) return wrong_graph(graphs.problem);
  const Options<T> options{limit, T(tolerance), T(damping), transposed};
  graphs.each(pool, [&](const Layout& layout, int64_t b, const auto& spread) {
    run<T>(layout, variables, states, edges, graphs.pairs(b), unary.typed_data() + b * by_unary,
           tables.typed_data() + b * by_tables, messages.typed_data() + b * by_messages,
           given.typed_data() + b * by_given, options, spread, out->typed_data() + b * all);
  });
  return ffi::Error::Success();
}

template <ffi::DataType type>
auto binding() {
  return with_buffers<type, 2, 1>(graph_binding<type>("transposed"));
}

}  // namespace

VARAX_HANDLER(varax_factor_graph_solve_f32, solve<ffi::F32>, binding<ffi::F32>());
VARAX_HANDLER(varax_factor_graph_solve_f64, solve<ffi::F64>, binding<ffi::F64>());

}  // namespace varax
