//! Expands `#[executor::main]`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Attribute, Error, Ident, ItemFn, Path, Result, Visibility, parse_quote};

use crate::attr;

pub(crate) fn main(attr: TokenStream, item: TokenStream) -> TokenStream {
    let krate = attr::parse_main(attr);
    let function: ItemFn = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let message = format!("`#[executor::main]` can only be used on `fn main`: {error}");
            let error = Error::new(error.span(), message).to_compile_error();
            return quote!(#item #error);
        }
    };
    let name = function.sig.ident.clone();
    krate.and_then(|krate| generate(&krate, function)).unwrap_or_else(|error| {
        let error = error.to_compile_error();
        // Emit an empty function of that name. Without it, the compiler would also report that the
        // function is missing.
        quote!(#error fn #name() {})
    })
}

fn generate(krate: &Path, mut function: ItemFn) -> Result<TokenStream> {
    if !function.sig.inputs.is_empty() {
        let message = "`#[executor::main]` needs a `main` function without arguments";
        return Err(Error::new_spanned(&function.sig.inputs, message));
    }
    let init = quote!(#krate::init(););

    let Some(asyncness) = function.sig.asyncness else {
        function.block.stmts.insert(0, parse_quote!(#init));
        return Ok(function.into_token_stream());
    };

    // The runtime's attribute is below this one and has not been expanded yet. It stays on the
    // async function, which moves into a plain `main`. `init` runs there first, because a worker
    // must not start the runtime before it knows that it is a worker.
    if function.attrs.iter().all(is_compilers_own) {
        return Err(Error::new(
            asyncness.span,
            "an `async fn main` needs a runtime: write `#[tokio::main]` (or another runtime's attribute) below \
             `#[executor::main]`",
        ));
    }
    let mut outer = function.clone();
    outer.attrs.retain(is_for_both);
    outer.sig.asyncness = None;
    // `mixed_site` keeps the name apart from names in the user's code.
    let inner = Ident::new("async_main", Span::mixed_site());
    function.vis = Visibility::Inherited;
    function.sig.ident = inner.clone();
    *outer.block = parse_quote!({
        #init
        #function
        #inner()
    });
    Ok(outer.into_token_stream())
}

/// Whether this is an attribute of the compiler, which cannot start a runtime.
fn is_compilers_own(attr: &Attribute) -> bool {
    const OWN: [&str; 12] = [
        "allow",
        "cfg",
        "cfg_attr",
        "cold",
        "deny",
        "doc",
        "expect",
        "forbid",
        "inline",
        "must_use",
        "track_caller",
        "warn",
    ];
    OWN.iter().any(|own| attr.path().is_ident(own))
}

/// Whether the outer `main` needs this attribute as well as the inner function. `cfg` must be on
/// both: where it removes the inner function, it must also remove the outer one.
fn is_for_both(attr: &Attribute) -> bool {
    ["cfg", "allow", "expect", "warn", "deny", "forbid"].iter().any(|own| attr.path().is_ident(own))
}
