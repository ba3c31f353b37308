#include "manifest.h"

#include <fstream>
#include <vector>

#include "json_file.h"
#include "lit_sft/error.h"
#include "sha256.h"

namespace lit_sft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSized = "model.onnx.data";
constexpr const char* kHashed[] = {"model.onnx", "tokenizer/text.model"};
constexpr std::size_t kMostHashed = std::size_t{1} << 30;

void check_size(const fs::path& file, const JsonObject& said) {
    std::error_code failed;
    const auto size = fs::file_size(file, failed);
    if (failed) throw UserError(file.string() + " is missing; copy the folder whole, or export the model again");
    const auto wanted = static_cast<std::uintmax_t>(said.number("bytes", 0, INT64_MAX));
    if (size != wanted)
        throw UserError(file.string() + " has " + std::to_string(size) + " bytes and not the " +
                        std::to_string(wanted) + " that manifest.json says; copy it again, or export the model again");
}

}  // namespace

void check_manifest(const fs::path& folder) {
    const auto files = JsonObject::read(folder / "manifest.json").object("files");
    check_size(folder / kSized, files.object(kSized));
    for (const char* name : kHashed) {
        if (!files.has(name)) continue;
        const auto said = files.object(name);
        check_size(folder / name, said);
        if (sha256(read_file(folder / name, kMostHashed)) != said.text("sha256"))
            throw UserError((folder / name).string() +
                            " is damaged: its SHA-256 is not that of manifest.json; copy it again, or export the model "
                            "again");
    }
    if (!files.has("model.onnx")) files.refuse("model.onnx", "its size and hash");
}

}  // namespace lit_sft
