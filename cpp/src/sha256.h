#pragma once

#include <string>
#include <string_view>

namespace lit_sft {

/// SHA-256 of bytes (FIPS 180-4), in hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace lit_sft
