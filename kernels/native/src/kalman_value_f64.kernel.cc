#include "kalman_value.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {

void kalman_value_f64(const KalmanValue<double>* problem, int64_t group) {
  const KalmanModel<double>& of = problem->model;
  pick<double>(of, [&](auto x, auto m) { value<typename decltype(x)::X, decltype(m)::value>(*problem, group); });
}

int64_t kalman_groups_f64(int64_t m, int64_t batch) { return groups<double>(m, batch); }
}  // namespace VARAX_ISA
}  // namespace varax
