#include "kalman_value.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {

void kalman_value_f32(const KalmanValue<float>* problem, int64_t group) {
  const KalmanModel<float>& of = problem->model;
  pick<float>(of, [&](auto x, auto m) { value<typename decltype(x)::X, decltype(m)::value>(*problem, group); });
}

int64_t kalman_groups_f32(int64_t m, int64_t batch) { return groups<float>(m, batch); }
}  // namespace VARAX_ISA
}  // namespace varax
