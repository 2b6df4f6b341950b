// Messages of pairwise factor graphs: sixteen variables of about the same degree are updated together.
#pragma once

#include <cstdint>

#include "varax.h"

namespace varax {

constexpr int kGraphLanes = 16;

// Variables, sorted by degree, in groups of one a lane. A row is one edge of each variable of a group;
// message (row, y, lane) goes out of that lane's variable along that edge. Row `rows` holds ones.
struct GraphPlan {
  int64_t states, rows;
  const int64_t* first;    // [groups + 1], the first row of each group
  const int32_t* partner;  // [rows, lanes], where the message against that one is: (row * states) * lanes + lane
};

template <class T>
struct GraphSweep {
  const T* unary;    // [groups, states, lanes]
  const T* tables;   // [rows, states of the variable, states of the other one, lanes]
  const T* before;   // [rows + 1, states, lanes]
  T* after;          // the same
  T damping;
  bool maximum;      // max-product instead of sum-product
  T* scratch;        // graph_scratch(states, largest degree) elements, aligned to 64 bytes
  T* joint;          // the normalised products of factors and what comes in, as `tables`; or null
};

// The linear equation x = J x - given, J the slope of a sweep in the messages, or its transpose. What x is of lies
// where the message goes out, or comes in if transposed; `before` is what the variable at the other end has there,
// as x / message, or x if transposed. Its row `rows` holds zeros.
template <class T>
struct GraphSolve {
  const T *joint, *sent;  // what a sweep gives
  const T* inverse;       // 1 / message, or 0; as x lies
  const T* given;
  T* x;
  const T* before;
  T* after;
  T damping;
  bool transposed;
  T* scratch;
};

inline int64_t graph_scratch(int64_t states, int64_t degree) {
  return (2 * degree + 4) * states * kGraphLanes;
}

}  // namespace varax

// graph_sweep_* and graph_solve_* update groups from, ..., to - 1 and gives the largest change of a message;
// graph_exponentials_* are those of rows, less the maximum of each, in place.
VARAX_DECLARE(float graph_sweep_f32(const GraphPlan&, const GraphSweep<float>&, int64_t from, int64_t to);
              double graph_sweep_f64(const GraphPlan&, const GraphSweep<double>&, int64_t from, int64_t to);
              float graph_solve_f32(const GraphPlan&, const GraphSolve<float>&, int64_t from, int64_t to);
              double graph_solve_f64(const GraphPlan&, const GraphSolve<double>&, int64_t from, int64_t to);
              void graph_exponentials_f32(const float* logs, float* to, int64_t rows, int64_t width);
              void graph_exponentials_f64(const double* logs, double* to, int64_t rows, int64_t width);)
