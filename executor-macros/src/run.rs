//! Expands `#[task] impl Run for …`. It generates a task function that runs the value, and an
//! `impl IntoBody`, which turns the value into a `Process`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, ImplItem, ItemImpl, Path, Result, ReturnType, Type};

use crate::attr::TaskAttr;

/// Returns whether a block is `impl Run for …`.
pub(crate) fn is_run(item: &ItemImpl) -> bool {
    let path = item.trait_.as_ref().map(|(path, _)| path);
    path.and_then(|path| path.segments.last()).is_some_and(|last| last.ident == "Run")
}

pub(crate) fn expand(attr: TokenStream, item: &ItemImpl) -> Result<TokenStream> {
    let attr = TaskAttr::parse(attr)?;
    let krate = &attr.krate;
    let own = &item.self_ty;
    let Type::Path(path) = &**own else {
        return Err(Error::new_spanned(
            own,
            "`#[task] impl Run` needs a named type, such as a struct or an enum",
        ));
    };
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &item.generics,
            "`#[task] impl Run` cannot have generic parameters: the new process finds the implementation by \
             its name",
        ));
    }
    if let Some(handle) = &attr.handle {
        return Err(Error::new_spanned(
            handle,
            "`handle` is for task functions only: `impl Run` uses the type that is already there",
        ));
    }
    let is_run = |item: &&ImplItem| matches!(item, ImplItem::Fn(run) if run.sig.ident == "run");
    if let Some(other) = item.items.iter().find(|item| !is_run(item)) {
        return Err(Error::new_spanned(
            other,
            "`#[task] impl Run` must contain `fn run(self)` and nothing else: `#[task]` adds `type Output`",
        ));
    }
    let [ImplItem::Fn(run)] = &item.items[..] else {
        return Err(Error::new_spanned(own, "`#[task] impl Run` must contain one `fn run(self)`"));
    };
    let signature = &run.sig;
    let takes_self = matches!(signature.inputs.first(), Some(syn::FnArg::Receiver(receiver)) if matches!(receiver.kind, syn::ReceiverKind::Value));
    if signature.inputs.len() != 1 || !takes_self {
        return Err(Error::new_spanned(
            signature,
            "`run` must take `self` and no arguments: the value is moved to the new process",
        ));
    }
    if let Some(asyncness) = &signature.asyncness {
        return Err(Error::new(
            asyncness.span,
            "`run` cannot be an `async fn`: use an `async` task function instead",
        ));
    }
    let output: Type = match &signature.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, output) => (**output).clone(),
    };
    let user_path = item.trait_.as_ref().map(|(path, _)| path);
    let name = snake(&path.path);
    let function = format_ident!("run_{}", name);
    let (attrs, attr_name) = (&item.attrs, attr.name.iter());
    let krate_text = quote!(#krate).to_string().replace(' ', "");
    let codec = match attr.codec {
        crate::attr::Codec::Postcard => quote!(),
        crate::attr::Codec::MessagePack => quote!(codec = "messagepack",),
    };
    // The block `const _` keeps the generated function's name out of the user's module.
    Ok(quote! {
        const _: () = {
            #[#krate::task(#(name = #attr_name,)* #codec crate = #krate_text)]
            fn #function(value: #own) -> #output {
                #krate::Run::run(value)
            }

            #(#attrs)*
            impl #user_path for #own {
                type Output = #output;
                #run
            }

            impl #krate::IntoBody for #own {
                type Output = <#function as #krate::TaskFn>::Output;

                fn into_process(self) -> #krate::Process<Self::Output> {
                    #krate::IntoBody::into_process(#function::task(self))
                }
            }
        };
    })
}

/// Converts a type's name to snake case for use in a function's name: `MyProcess` becomes
/// `my_process`.
fn snake(path: &Path) -> String {
    let name = path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default();
    let mut out = String::new();
    for (at, char) in name.chars().enumerate() {
        if char.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(char.to_lowercase());
    }
    out
}
