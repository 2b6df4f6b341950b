// How a pairwise factor graph lies in memory for the loops over messages. For files with handlers.
#pragma once

#include <cmath>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "factor_graph.h"
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

// Weights of variables and factors, exponentiated, [groups, states, lanes] and [rows, states, states, lanes].
template <class T>
struct GraphWeights {
  Aligned<T> unary, tables;

  GraphWeights(const Layout& layout, int64_t variables, int64_t states, int64_t edges, const int32_t* pairs,
               const T* unary_logs, const T* table_logs)
      : unary(layout.groups * states * kGraphLanes, 1), tables(layout.rows * states * states * kGraphLanes, 1) {
    const int64_t lanes = kGraphLanes, square = states * states;
    auto exponentials = VARAX_PICK_OF(T, graph_exponentials);
    std::vector<T> plain(std::max(variables * states, edges * square));
    exponentials(unary_logs, plain.data(), variables, states);
    for (int64_t v = 0; v < variables; ++v)
      for (int64_t s = 0; s < states; ++s)
        unary.at[(layout.group[v] * states + s) * lanes + layout.lane[v]] = plain[v * states + s];
    exponentials(table_logs, plain.data(), edges, square);
    for (int64_t e = 0; e < edges; ++e) {
      const int32_t from = layout.lane[pairs[2 * e]], to = layout.lane[pairs[2 * e + 1]];
      T* there = tables.at + (layout.out[2 * e] - from) * states + from;
      T* back = tables.at + (layout.out[2 * e + 1] - to) * states + to;
      for (int64_t x = 0; x < states; ++x)
        for (int64_t y = 0; y < states; ++y) {
          there[(x * states + y) * lanes] = plain[e * square + x * states + y];
          back[(y * states + x) * lanes] = plain[e * square + x * states + y];
        }
    }
  }
};

// The graphs of a batch, as the handlers get them: operands of stride 0 are shared.
struct Graphs {
  int64_t batch, variables, states, edges;
  const int32_t* index;
  int64_t by_pairs = 0;
  const char* problem = nullptr;

  Graphs(int64_t batch, int64_t variables, int64_t states, int64_t edges, ffi::Buffer<ffi::S32> pairs)
      : batch(batch), variables(variables), states(states), edges(edges), index(pairs.typed_data()) {
    by_pairs = stride(pairs.element_count(), 2 * edges);
    for (int64_t i = 0; problem == nullptr && i < int64_t(pairs.element_count()); ++i) {
      if (index[i] < 0 || index[i] >= variables) problem = "a variable's index is out of range";
      if (i % 2 == 1 && index[i] == index[i - 1]) problem = "a factor has one variable twice";
    }
    if ((variables + 2 * edges + 1) * states * kGraphLanes > int64_t(1) << 31) problem = "the graph is too large";
  }

  int64_t stride(int64_t count, int64_t each) {
    if (count == each * batch) return batch == 1 ? int64_t(0) : each;
    if (count != each) problem = "a wrong number of elements in an operand";
    return int64_t(0);
  }
  const int32_t* pairs(int64_t b) const { return index + b * by_pairs; }

  // one(layout, b, spread) for each graph; spread(count, task) runs the tasks of a sweep: those of a single graph
  // on all threads, of a batch one after the other, since its graphs are.
  template <class One>
  void each(ffi::ThreadPool& pool, const One& one) const {
    auto in_order = [](int64_t count, const auto& task) {
      for (int64_t i = 0; i < count; ++i) task(i);
    };
    if (batch == 1) {
      const Layout layout(variables, states, edges, index);
      one(layout, 0, [&](int64_t count, const auto& task) { parallel(pool, count, task); });
    } else if (by_pairs == 0) {
      const Layout layout(variables, states, edges, index);
      parallel(pool, batch, [&](int64_t b) { one(layout, b, in_order); });
    } else {
      parallel(pool, batch, [&](int64_t b) {
        const Layout layout(variables, states, edges, pairs(b));
        one(layout, b, in_order);
      });
    }
  }
};

// What handlers of graphs are told and read first: weights of variables, pairs, weights of factors.
template <ffi::DataType type>
auto graph_binding(const char* flag) {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Attr<int64_t>("batch")
      .template Attr<int64_t>("variables")
      .template Attr<int64_t>("states")
      .template Attr<int64_t>("edges")
      .template Attr<int64_t>("iterations")
      .template Attr<double>("tolerance")
      .template Attr<double>("damping")
      .template Attr<bool>(flag)
      .template Arg<ffi::Buffer<type>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<type>>();
}

inline ffi::Error wrong_graph(const char* what) {
  return ffi::Error::InvalidArgument(std::string("factor_graph: ") + what);
}

}  // namespace
}  // namespace varax
