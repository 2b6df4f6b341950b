// The library itself: instruction sets and the list of handlers.
#include "varax.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace varax {
namespace {

int best() {
#if defined(VARAX_X86)
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 0;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni");
  return wide ? 2 : 1;
#else
  return 0;
#endif
}

int chosen() {
  const char* wanted = std::getenv("VARAX_ISA");
  int most = best();
  if (wanted == nullptr) return most;
  int cap = std::strcmp(wanted, "portable") == 0 ? 0 : std::strcmp(wanted, "avx2") == 0 ? 1 : 2;
  return cap < most ? cap : most;
}

std::string& names() {
  static std::string all;
  return all;
}

}  // namespace

int level() {
  static const int found = chosen();
  return found;
}

void remember(const char* name) {
  if (!names().empty()) names() += "\n";
  names() += name;
}

}  // namespace varax

extern "C" {

__attribute__((visibility("default"))) const char* varax_handlers() { return varax::names().c_str(); }

__attribute__((visibility("default"))) int varax_level() { return varax::level(); }

}  // extern "C"
